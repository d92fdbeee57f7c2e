"""A quantized model as files: codes and scales as in memory, and the format of every matrix.

The weights file is ``quantized.safetensors`` instead of ``model.safetensors``: a loader that does not support
it must find no weights rather than misread these. Only layers of the reference backend are written;
:func:`to_reference` converts others. :func:`save_layers` writes single matrices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitrank_quant.apply import swap_weights, with_weight
from bitrank_quant.backends.reference import QuantEmbedding, QuantLinear, QuantWeight
from bitrank_quant.errors import QuantError
from bitrank_quant.formats.float import Float
from bitrank_quant.formats.parse import parse_format
from bitrank_quant.matrices import followers, tied_modules, weight_matrices

_WEIGHTS, _FORMATS = "quantized.safetensors", "formats.json"


def to_reference(layer: nn.Module, weight_OI: Tensor, text: str, compute_dtype: torch.dtype) -> nn.Module:
    """A reference layer that stores ``weight_OI`` in the format ``text``, with the bias of ``layer``."""
    bias, fmt = layer.bias, parse_format(text)
    if not isinstance(fmt, Float):
        return QuantLinear(QuantWeight(weight_OI, fmt, compute_dtype), bias)  # type: ignore[arg-type]
    plain = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=bias is not None, device="meta")
    plain.weight = nn.Parameter(weight_OI.to(compute_dtype), requires_grad=False)
    plain.bias = bias  # type: ignore[assignment]
    return plain


def save_quantized(model: nn.Module, folder: Path) -> None:
    """Write every tensor of ``model`` once, and the formats of its matrices, into ``folder``."""
    tensors: dict[str, Tensor] = {}
    seen: set[tuple[int, int]] = set()
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.numel())
        if key not in seen:
            seen.add(key)
            tensors[name] = tensor.detach().cpu().contiguous()
    layers = ((name, m) for name, m in model.named_modules() if isinstance(m, (QuantLinear, QuantEmbedding)))
    formats = {
        name: str(layer.quantized.fmt)
        for name, layer in layers
        if any(key.startswith(f"{name}.quantized.") for key in tensors)
    }
    save_file(tensors, folder / _WEIGHTS)
    (folder / _FORMATS).write_text(json.dumps(formats, indent=1))


def save_layers(layers: Mapping[str, nn.Module], folder: Path) -> None:
    """Write the codes of quantized ``layers``, by name in their model, into ``folder``.

    The files are those of :func:`save_quantized` without other tensors. Biases are not written. Raises
    :class:`QuantError` for a layer of another backend than the reference.
    """
    tensors: dict[str, Tensor] = {}
    formats: dict[str, str] = {}
    for name, layer in layers.items():
        if not isinstance(layer, QuantLinear):
            raise QuantError(f"expected {name!r} in the reference backend, got {type(layer).__name__}")
        formats[name] = str(layer.quantized.fmt)
        tensors |= {f"{name}.quantized.{part}": t.cpu() for part, t in layer.quantized.tensors.items()}
    save_file(tensors, folder / _WEIGHTS)
    (folder / _FORMATS).write_text(json.dumps(formats, indent=1))


def has_layers(folder: Path) -> bool:
    """Whether ``folder`` has files of :func:`save_layers`."""
    return (folder / _WEIGHTS).is_file() and (folder / _FORMATS).is_file()


def load_layers(model: nn.Module, folder: Path) -> None:
    """Replace the codes of quantized layers of ``model`` by those that :func:`save_layers` wrote, in place.

    Raises :class:`QuantError` if the files are damaged, or the model has another layer, format or shape of
    that name.
    """
    try:
        formats = json.loads((folder / _FORMATS).read_text(encoding="utf-8"))
        tensors = load_file(folder / _WEIGHTS)
    except (OSError, ValueError) as error:
        raise QuantError(f"{folder} holds no codes: expected {_WEIGHTS} and {_FORMATS} ({error})") from error
    modules = dict(model.named_modules())
    for name, text in formats.items():
        layer = modules.get(name)
        if not isinstance(layer, QuantLinear) or str(layer.quantized.fmt) != text:
            raise QuantError(f"{folder} holds the matrix {name!r} in {text}, which this model has not")
        for part, current in layer.quantized.tensors.items():
            given = tensors[f"{name}.quantized.{part}"]
            if given.shape != current.shape:
                raise QuantError(f"{folder} holds {name!r} in another shape than this model")
            current.copy_(given)


def load_quantized(model: nn.Module, folder: Path, compute_dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """Load the files of :func:`save_quantized` into ``model``, in place, and return it.

    ``model`` has the same configuration and any weights. Raises :class:`QuantError` if ``folder`` contains no
    quantized model, or one with other matrices or shapes.
    """
    try:
        formats = json.loads((folder / _FORMATS).read_text(encoding="utf-8"))
        tensors = load_file(folder / _WEIGHTS)
    except (OSError, ValueError) as error:
        raise QuantError(
            f"{folder} holds no quantized model: expected {_WEIGHTS} and {_FORMATS} ({error})"
        ) from error
    shapes, tied, sharing = (
        {m.name: m.shape for m in weight_matrices(model)},
        tied_modules(model),
        followers(model),
    )
    if strange := [name for name in formats if name not in shapes]:
        raise QuantError(
            f"{folder} holds the matrix {strange[0]!r}, which this model lacks; "
            "build the model from the folder's config.json"
        )
    for name, text in formats.items():
        prefix = f"{name}.quantized."
        codes = {
            key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)
        }
        owner = tied.get(name, name)
        modules = {part: model.get_submodule(part) for part in (owner, *sharing.get(owner, []))}
        swap_weights(
            model,
            with_weight(QuantWeight.of(codes, parse_format(text), shapes[name], compute_dtype), modules),
        )
    _assign_unquantized(model, tensors, folder)
    return model


def _assign_unquantized(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Assign all unquantized tensors; 16-bit ``Conv1D`` matrices were saved transposed, as linear layers."""
    current = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in tensors.items():
        target = current.get(name)
        if target is None or tensor.numel() != target.numel():
            raise QuantError(
                f"{folder} holds {name!r} of shape {tuple(tensor.shape)}, which does not fit this model"
            )
        conv = isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D) and tensor.ndim == 2
        # Keep the model's dtype: norms are computed in fp32 during training, though their values fit 16 bits.
        target.data = (tensor.T.contiguous() if conv else tensor).to(target.dtype)
