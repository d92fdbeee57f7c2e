"""Compute from shapes the bytes that a model takes once a precision plan is applied.

The result equals the count in the built model.
Backends count the bytes of their own layers by arithmetic; tests compare them with built layers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from bitrank_adapters import is_norm
from bitrank_quant import (
    BACKENDS,
    Float,
    WeightMatrix,
    check_fits,
    check_looks_up,
    check_takes_codes,
    choose_backend,
    is_mask,
    left_out,
    override_for,
    parse_format,
    readers_of_weights,
    tied_modules,
)  # fmt: skip
from torch import Tensor, nn


@dataclass(frozen=True)
class Storage:
    """How low-bit matrices are stored: by ``quant_backend`` on ``device``, for computation in ``dtype``.

    ``coded``: a quantizer gives the codes, in place of rounding by each backend.
    """

    quant_backend: str
    device: str
    dtype: torch.dtype
    coded: bool = False


def stored_size(matrix: WeightMatrix, text: str, storage: Storage, *, shared: bool = False) -> int:
    """Return the bytes of ``matrix`` in the format ``text``: codes, scales and code books, without its bias.

    ``shared`` marks a matrix that the reference backend must store (:func:`held_by_torch`), as it stores
    every embedding. Raises the quant package's error if the backend cannot store the matrix, as a run would.
    """
    device, dtype = storage.device, storage.dtype
    override = override_for(storage.quant_backend, device, dtype)
    fmt = parse_format(text)
    if override.format is not None and not isinstance(fmt, Float):
        fmt = parse_format(override.format)
    if matrix.role == "embedding":
        check_looks_up(fmt, matrix.shape, matrix.name)
    if isinstance(fmt, Float) or shared or matrix.role == "embedding":
        return fmt.nbytes(matrix.shape)
    given = matrix.shape if storage.coded else None
    backend = override.backend or choose_backend(fmt, device, dtype, given).name
    check_fits(backend, fmt, matrix.shape, matrix.name)
    if storage.coded:
        check_takes_codes(backend, fmt, matrix.shape, matrix.name)
    return BACKENDS[backend].nbytes(fmt, matrix.shape, dtype)


def held_by_torch(model: nn.Module) -> frozenset[str]:
    """Return the names of the matrices that the reference backend stores whatever the configured backend.

    Other modules share or read the weights of these matrices.
    """
    return frozenset(tied_modules(model).values()) | readers_of_weights(model)


def base_bytes(
    model: nn.Module,
    precision: Mapping[str, str],
    matrices: list[WeightMatrix],
    storage: Storage,
    trained_modules: Collection[str] = (),
) -> int:
    """Return the stored bytes of the base model.

    ``matrices`` are counted as ``precision`` stores them, norms in fp32, the rest as in ``model`` (a model on
    the ``meta`` device). ``trained_modules`` are the modules of ``model`` that will be trained.
    """
    by_torch = held_by_torch(model)
    planned = {m.name: m for m in matrices if m.name in precision and m.tied_to is None}
    stored = sum(
        stored_size(m, precision[name], storage, shared=name in by_torch) for name, m in planned.items()
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
    return sum(size for key, size in sizes.items() if key not in taken) + _buffers(model, masks=False)


def mask_bytes(model: nn.Module) -> int:
    """Return the bytes of boolean masks in ``model``, which are in memory and not among the stored bytes."""
    return _buffers(model, masks=True)


def _buffers(model: nn.Module, *, masks: bool) -> int:
    sizes: dict[Any, int] = {}
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if is_mask(module, name) == masks:
                storage = buffer.untyped_storage()
                sizes[_place(buffer)] = storage.nbytes() if buffer.numel() else 0
    return sum(sizes.values())


def _place(buffer: Tensor) -> object:
    return id(buffer) if buffer.is_meta else buffer.untyped_storage().data_ptr()
