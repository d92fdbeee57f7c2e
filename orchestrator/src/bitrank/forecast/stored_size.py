"""Compute from shapes the bytes that a model takes once a precision plan is applied.

The result equals the count in the built model. Formats report their own bytes; libraries store code books and
scales beside them, and pad in their own way. This module computes those sizes, and tests compare them with
built layers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from bitrank_adapters import is_norm
from bitrank_quant import (
    BACKENDS,
    Codebook,
    Float,
    Format,
    Int8Row,
    WeightMatrix,
    check_fits,
    choose_backend,
    left_out,
    override_for,
    parse_format,
    readers_of_weights,
    tied_modules,
)  # fmt: skip
from torch import Tensor, nn

# bitsandbytes stores its code books and the mean of the scales with each matrix, in fp32.
_BOOK, _SCALE_BOOK, _OFFSET = (
    4 * 16,
    4 * 256,
    4,
)
_NESTED = 256  # number of block scales that share one outer scale
_GROUP = 64


def stored_size(
    matrix: WeightMatrix,
    text: str,
    *,
    quant_backend: str,
    device: str,
    dtype: torch.dtype,
    shared: bool = False,
) -> int:
    """Return the bytes of ``matrix`` in the format ``text``: codes, scales and code books, without its bias.

    ``shared`` marks a matrix that the reference backend must store (:func:`held_by_torch`), as it stores
    every embedding. Raises the quant package's error if no backend supports the format.
    """
    override = override_for(quant_backend, device, dtype)
    fmt = parse_format(text)
    if override.format is not None and not isinstance(fmt, Float):
        fmt = parse_format(override.format)
    if isinstance(fmt, Float) or shared or matrix.role == "embedding":
        return fmt.nbytes(matrix.shape)
    backend = override.backend or choose_backend(fmt, device, dtype).name
    check_fits(backend, fmt, matrix.shape, matrix.name)
    return backend_bytes(backend, fmt, matrix.shape, dtype)


def held_by_torch(model: nn.Module) -> frozenset[str]:
    """Return the names of the matrices that the reference backend stores whatever the configured backend.

    Other modules share or read the weights of these matrices.
    """
    return frozenset(tied_modules(model).values()) | readers_of_weights(model)


def backend_bytes(backend: str, fmt: Format, shape: tuple[int, int], dtype: torch.dtype) -> int:
    """Return the bytes that ``backend`` stores for a matrix of ``shape`` (out, in) in ``fmt``.

    ``dtype`` is the compute dtype.
    """
    assert backend in BACKENDS
    if backend == "bitsandbytes" and isinstance(fmt, Codebook):
        return _bitsandbytes_4bit(math.prod(shape), fmt.double_quant)
    if backend == "quanto":
        return _quanto(fmt, shape, dtype.itemsize)
    return fmt.nbytes(shape)


def base_bytes(
    model: nn.Module,
    precision: Mapping[str, str],
    matrices: list[WeightMatrix],
    *,
    quant_backend: str,
    device: str,
    dtype: torch.dtype,
    trained_modules: Collection[str] = (),
) -> int:
    """Return the stored bytes of the base model.

    ``matrices`` are counted as ``precision`` stores them, norms in fp32, the rest as in ``model`` (a model on
    the ``meta`` device). ``trained_modules`` are the modules of ``model`` that will be trained.
    """
    by_torch = held_by_torch(model)
    planned = {m.name: m for m in matrices if m.name in precision and m.tied_to is None}
    options: dict[str, Any] = {"quant_backend": quant_backend, "device": device, "dtype": dtype}
    stored = sum(
        stored_size(m, precision[name], **options, shared=name in by_torch) for name, m in planned.items()
    )
    return stored + rest_bytes(model, set(planned), trained_modules)


def rest_bytes(model: nn.Module, without: set[str], trained_modules: Collection[str] = ()) -> int:
    """Return the bytes of ``model`` without the weights of the modules named in ``without``.

    Tensors that modules share count once. Tensors that no plan can name are stored in 16 bits, except those
    of ``trained_modules``.
    """
    taken = {id(model.get_submodule(name).weight) for name in without}
    narrow = {id(model.get_parameter(one.name)) for one in left_out(model, trained_modules)}
    sizes: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            size = 4 if is_norm(module) else parameter.element_size()
            size = min(size, 2) if id(parameter) in narrow else size
            sizes[id(parameter)] = parameter.numel() * size
    return sum(size for key, size in sizes.items() if key not in taken) + _buffers(model)


def _buffers(model: nn.Module) -> int:
    sizes: dict[Any, int] = {}
    for buffer in model.buffers():
        storage = buffer.untyped_storage()
        sizes[_place(buffer)] = storage.nbytes() if buffer.numel() else 0
    return sum(sizes.values())


def _place(buffer: Tensor) -> object:
    return id(buffer) if buffer.is_meta else buffer.untyped_storage().data_ptr()


def _bitsandbytes_4bit(numbers: int, double_quant: bool) -> int:
    """Return the bytes of a 4-bit matrix in bitsandbytes.

    Blocks run across rows, so the shape does not matter. Double quantization stores 8-bit block scales with
    outer scales and a code book of their own.
    """
    blocks = -(-numbers // _GROUP)
    scales = blocks + 4 * -(-blocks // _NESTED) + _SCALE_BOOK + _OFFSET if double_quant else 4 * blocks
    return -(-numbers // 2) + scales + _BOOK


def _quanto(fmt: Format, shape: tuple[int, int], size: int) -> int:
    """Return the bytes of a matrix in quanto with a compute dtype of ``size`` bytes.

    Scales (and shifts) are in the compute dtype. Two unused scalars for activations are stored as well.
    """
    if isinstance(fmt, Int8Row):
        return math.prod(shape) + size * shape[0] + 2 * size
    groups = math.prod(shape) // _GROUP  # check_fits has refused shapes with a partial group
    # quanto treats a single group as a column and scales each number.
    scales = groups if groups > 1 else _GROUP
    return -(-groups * fmt.bits // 8) * _GROUP + 2 * size * scales + 2 * size
