"""The tensors of a merged model by the names of its file: packed matrices, and the rest in 16 bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from bitrank_quant import Float, Format, QuantWeight
from torch import Tensor, nn

STATE = torch.bfloat16  # dtype of tensors that are not quantized, and of scales

Pack = Callable[[QuantWeight], dict[str, Tensor]]
"""The tensors of a matrix by the last part of their names."""


@dataclass
class FileTensors:
    """Tensors by name, the format of each quantized matrix, and the bytes of the matrices of a plan.

    ``matrix_bytes`` are those of quantized matrices and of all other linear and embedding weights.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    formats: dict[str, Format] = field(default_factory=dict)
    matrix_bytes: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def file_tensors(model: nn.Module, pack: Pack) -> FileTensors:
    """The tensors of ``model``, each once: quantized matrices by ``pack``, the others in 16 bits."""
    found, seen = FileTensors(), set()
    for name, module in model.named_modules():
        quantized = module._modules.get("quantized")
        if isinstance(quantized, QuantWeight) and id(quantized) not in seen:
            seen.add(id(quantized))
            parts = {"weight": quantized.decode(STATE)}
            if not isinstance(quantized.fmt, Float):
                found.formats[name], parts = quantized.fmt, pack(quantized)
            found.tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
            found.matrix_bytes += sum(tensor.nbytes for tensor in parts.values())
    for name, tensor in model.state_dict(keep_vars=True).items():
        owner, _, leaf = name.rpartition(".")
        if ".quantized." in f".{owner}." or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        plain = tensor.detach().to(STATE) if tensor.is_floating_point() else tensor.detach()
        found.tensors[name] = plain
        if leaf == "weight" and isinstance(model.get_submodule(owner), nn.Linear | nn.Embedding):
            found.matrix_bytes += plain.nbytes
    found.tensors = {name: tensor.cpu().contiguous() for name, tensor in found.tensors.items()}
    return found


def round_to_state(model: nn.Module) -> None:
    """Round every unquantized tensor of ``model`` to 16 bits, so that an audit includes the rounding."""
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(STATE).to(tensor.dtype)


def config_data(model: Any) -> dict[str, Any]:
    """The whole configuration of ``model`` for its file: nothing is left to the defaults of a runtime.

    Runtimes read ``rope_theta`` and ``rope_scaling``; transformers 5 writes both as ``rope_parameters``.
    """
    data: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    dtype = str(STATE).removeprefix("torch.")
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    weights = {id(_weight(table)) for table in tables if table is not None}
    # The configuration names the class of the base's file; a classifier has another.
    data["architectures"] = [type(model).__name__]
    data |= {"dtype": dtype, "torch_dtype": dtype, "tie_word_embeddings": len(weights) < len(tables)}
    rope = data.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        data["rope_theta"] = rope["rope_theta"]
        data["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    data.pop("quantization_config", None)
    return data


def _weight(table: Any) -> object:
    return table._modules.get("quantized") or table._parameters.get("weight")
