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
from bitrank_quant.formats.base import Format, Tensors
from bitrank_quant.formats.float import Float
from bitrank_quant.formats.parse import parse_format
from bitrank_quant.matrices import followers, tied_modules, weight_matrices

_WEIGHTS, _FORMATS = "quantized.safetensors", "formats.json"


def to_reference(layer: nn.Module, weight_OI: Tensor, text: str, compute_dtype: torch.dtype) -> nn.Module:
    """A reference layer that stores ``weight_OI`` in the format ``text``, with the bias of ``layer``.

    It is a plain linear layer if ``text`` is the format of ``compute_dtype``.
    """
    bias, fmt = layer.bias, parse_format(text)
    if not (isinstance(fmt, Float) and fmt.dtype == compute_dtype):
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
        codes, current = _take_codes(tensors, name), layer.quantized.tensors
        _check_names(codes, current, f"{folder} holds the matrix {name!r} as {text}")
        for part, given in codes.items():
            if given.shape != current[part].shape:
                raise QuantError(f"{folder} holds {name!r} in another shape than this model")
            current[part].copy_(given)


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
        codes, fmt = _take_codes(tensors, name), parse_format(text)
        _check_codes(codes, fmt, shapes[name], f"{folder} holds the matrix {name!r} as {text}")
        owner = tied.get(name, name)
        modules = {part: model.get_submodule(part) for part in (owner, *sharing.get(owner, []))}
        swap_weights(model, with_weight(QuantWeight.of(codes, fmt, shapes[name], compute_dtype), modules))
    _assign_unquantized(model, tensors, folder)
    return model


def _take_codes(tensors: dict[str, Tensor], name: str) -> Tensors:
    """The parts of the matrix ``name`` by their names, removed from ``tensors``."""
    prefix = f"{name}.quantized."
    return {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}


def _check_names(codes: Tensors, expected: Tensors, what: str) -> None:
    if codes.keys() != expected.keys():
        found = ", ".join(sorted(codes)) or "nothing"
        raise QuantError(
            f"{what}, whose parts are {', '.join(sorted(expected))}; found {found}. The file is damaged: "
            "write it again"
        )


def _check_codes(codes: Tensors, fmt: Format, shape: tuple[int, int], what: str) -> None:
    """Raise :class:`QuantError` if ``codes`` are not the parts of a matrix of ``shape`` (out, in)."""
    group = fmt.encode(torch.zeros(1, fmt.block or shape[1]))  # the names and types of the parts
    _check_names(codes, group, what)
    # Elements in the types that the format counts: an update within groups is stored in minima of more bytes.
    stored = sum(codes[part].numel() * like.element_size() for part, like in group.items())
    whole = all(codes[part].shape == shape for part, like in group.items() if like.dim() == 2)
    if stored != fmt.nbytes(shape) or not whole:
        raise QuantError(
            f"{what} in {stored:,} bytes; this model's matrix of shape {shape} takes {fmt.nbytes(shape):,}. "
            "Build the model from the folder's config.json"
        )


def _assign_unquantized(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Assign all unquantized tensors; 16-bit ``Conv1D`` matrices were saved transposed, as linear layers.

    Raises :class:`QuantError` if one does not fit, or the file lacks one of the model.
    """
    current = dict(model.named_parameters()) | dict(model.named_buffers())
    # A tied parameter is in the file under the first of its names, the one that `named_parameters` gives.
    unread = {id(tensor) for name, tensor in current.items() if name not in tensors and tensor.numel()}
    saved = model.state_dict(keep_vars=True).items()
    if lacking := [name for name, t in saved if id(t) in unread and ".quantized." not in name]:
        raise QuantError(
            f"{folder} lacks {lacking[0]!r}, which this model has; build the model from its config.json"
        )
    for name, tensor in tensors.items():
        target = current.get(name)
        if target is None or tensor.numel() != target.numel():
            raise QuantError(
                f"{folder} holds {name!r} of shape {tuple(tensor.shape)}, which does not fit this model"
            )
        conv = isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D) and tensor.ndim == 2
        # Keep the model's dtype: norms are computed in fp32 during training, though their values fit 16 bits.
        target.data = (tensor.T.contiguous() if conv else tensor).to(target.dtype)
