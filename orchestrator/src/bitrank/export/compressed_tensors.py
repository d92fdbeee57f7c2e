"""Export for vLLM and transformers: ``pack-quantized`` weights of the library compressed-tensors.

A matrix is stored as unsigned codes in 32-bit words with a bf16 scale per group, ``w = (code - zero) ·
scale`` with zero = 2^(bits-1): a symmetric format of the run. ``config_groups`` in ``config.json`` lists the
matrices of each format. vLLM fuses query, key and value, and gate and up projections; these share a format.
Embeddings and heads stay in 16 bits. Writing needs no compressed-tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from bitrank_quant import QuantWeight, Symmetric, block_matrices, little_endian_words, unpack_bits
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitrank.errors import UserError
from bitrank.export.checked_model import CheckedModel
from bitrank.export.packed import Layout, prepare_packed
from bitrank.export.prepared import Options, Prepared
from bitrank.export.rebuild import Rebuilt
from bitrank.export.tensors import STATE, FileTensors, config_data
from bitrank.models.meta_model import meta_model

METHOD, LAYOUT = "compressed-tensors", "pack-quantized"


def check_compressed(model: CheckedModel) -> None:
    """Raise :class:`UserError` for a model that the library does not pack, or transformers does not load.

    The library does not pack ``Conv1D`` layers, and transformers fails for models whose own code reads the
    weight of a packed layer, which has none.
    """
    shapes: Any = meta_model(model.place, model.kind, 2, STATE)
    family = shapes.config.model_type
    if any(isinstance(module, Conv1D) for module in shapes.modules()):
        raise UserError(
            f"{METHOD} packs linear layers, and the matrices of {family} are Conv1D layers; export it with "
            "--to merged"
        )
    if _initializes_packed(shapes):
        raise UserError(
            f"transformers does not load packed weights of {family}: its code reads weights of layers that "
            "have none once they are packed; export it with --to merged"
        )


def _initializes_packed(shapes: Any) -> bool:
    """Whether the initialization after a load reads weights of block matrices; they are removed here."""
    for matrix in block_matrices(shapes):
        del shapes.get_submodule(matrix.name)._parameters["weight"]
    try:
        shapes.initialize_weights()
    except AttributeError:
        return True
    return False


def prepare_compressed(rebuilt: Rebuilt, options: Options) -> Prepared:
    """``model.safetensors`` and ``config.json`` with the codes of each matrix."""
    return prepare_packed(
        rebuilt, options, Layout("vllm", pack_compressed, compressed_config, {"format": "pt"})
    )


def pack_compressed(weight: QuantWeight) -> dict[str, Tensor]:
    """The tensors of ``pack-quantized`` for a matrix in a symmetric format.

    ``weight_packed`` (O, I · bits / 32) in int32, ``weight_scale`` (O, I / group) in bf16, and
    ``weight_shape``.
    """
    fmt, (rows, columns) = weight.fmt, weight.shape
    assert isinstance(fmt, Symmetric)  # chosen by runtime_formats
    codes_OI = unpack_bits(weight.tensors["codes"], fmt.bits, rows * columns).view(rows, columns)
    return {
        "weight_packed": little_endian_words(codes_OI, fmt.bits),
        "weight_scale": weight.tensors["scale"].view(rows, -1),
        "weight_shape": torch.tensor([rows, columns]),
    }


def compressed_config(model: Any, found: FileTensors) -> dict[str, Any]:
    """The content of ``config.json``: the whole configuration, and the matrices of each format."""
    groups: dict[str, dict[str, Any]] = {}
    for name, fmt in found.formats.items():
        group = groups.setdefault(str(fmt), {"targets": [], "weights": _scheme(fmt)})
        group["targets"].append(name)
    packed = found.formats
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    quantization = {
        "quant_method": METHOD,
        "format": LAYOUT,
        "quantization_status": "compressed",
        "config_groups": {f"group_{number}": group for number, group in enumerate(groups.values())},
        "ignore": [name for name in linear if name not in packed],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
    return {**config_data(model), **({"quantization_config": quantization} if groups else {})}


def _scheme(fmt: Any) -> dict[str, Any]:
    return {
        "num_bits": fmt.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": fmt.block,
        "dynamic": False,
    }
