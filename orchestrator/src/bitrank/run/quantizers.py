"""The quantizer of a run: codes for each matrix while the base is stored."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from bitrank_quant import (
    OVERRIDES,
    Float,
    Format,
    InputMoments,
    QuantError,
    check_quantizable,
    find_quantizer,
    parse_format,
    quantize,
    weight_matrices,
)
from bitrank_quant.sensitivity import input_moments
from torch import Tensor, nn

from bitrank.errors import UserError
from bitrank.run.measure_in_subprocess import measure_in_subprocess
from bitrank.sensitivity.input_moments import StoredMoments, gather, moments_place
from bitrank.spec.run_spec import RunSpec

Encode = Callable[[str, Tensor, Format], dict[str, Tensor]]
ROUNDING = RunSpec.quantizer  # the default, which every backend computes itself


def encoder(spec: RunSpec) -> Encode | None:
    """The function that encodes a matrix by its name, weight (O, I) and format; None for rounding.

    The moments of the inputs are gathered at the first call for a model and task, by a process of its own:
    gathering needs the whole model in 16 bits, which a run may not have memory for. Raises
    :class:`~bitrank.errors.UserError` if the task has no calibration data.
    """
    if spec.quantizer == ROUNDING:
        return None
    uses_moments = find_quantizer(spec.quantizer).uses_moments
    stored = stored_moments(spec) if uses_moments else None

    def encode(name: str, weight_OI: Tensor, fmt: Format) -> dict[str, Tensor]:
        moments = None if stored is None else stored.of(name, weight_OI.shape[1])
        return _quantized(name, weight_OI, fmt, spec.quantizer, moments)

    return encode


def encoder_of(
    model: nn.Module, quantizer: str, batches: Sequence[Mapping[str, Any]], formats: Mapping[str, str]
) -> Encode | None:
    """As :func:`encoder`, for a model in memory with float weights, and calibration ``batches``.

    ``formats`` are those that matrices will be stored in. Raises :class:`~bitrank.errors.UserError` if the
    quantizer uses batches and there are none, or none reaches a matrix of low bits; and :class:`QuantError`
    if it does not exist or a format has no grid for it.
    """
    parsed = {name: parse_format(text) for name, text in formats.items()}
    for fmt in set(parsed.values()):
        check_quantizable(fmt, quantizer)
    if quantizer == ROUNDING:
        return None
    moments: dict[str, InputMoments] = {}
    if find_quantizer(quantizer).uses_moments:
        coded = {name for name, fmt in parsed.items() if not isinstance(fmt, Float)}
        moments = _moments_of(model, quantizer, batches, coded)

    def encode(name: str, weight_OI: Tensor, fmt: Format) -> dict[str, Tensor]:
        return _quantized(name, weight_OI, fmt, quantizer, moments.get(name))

    return encode


def _moments_of(
    model: nn.Module, quantizer: str, batches: Sequence[Mapping[str, Any]], coded: Collection[str]
) -> dict[str, InputMoments]:
    """The second moments of the inputs of the matrices ``coded``, by name."""
    if not batches:
        raise UserError(
            f"the quantizer {quantizer} reduces errors at the inputs of each layer, and no inputs were "
            "given; give inputs=[batch, …] with calibration data, or quantizer='rtn'"
        )
    matrices = weight_matrices(model)
    found: dict[str, Tensor] = {}
    for part in input_moments(model, batches, lambda net, batch: net(**batch), matrices, _real_positions):
        found |= {name: moments_II.cpu() for name, moments_II in part.items()}
    tables = {m.name: torch.ones(m.shape[1]) for m in matrices if m.role == "embedding"}
    found = {**tables, **found}  # a head that shares its embedding's weight has inputs
    for matrix in matrices:
        if matrix.name in coded and matrix.tied_to is None and matrix.name not in found:
            raise UserError(
                f"no input of {matrix.name} is known: no batch of inputs reaches it; give other batches, or "
                "quantizer='rtn'"
            )
    return {name: InputMoments(moments) for name, moments in found.items() if name in coded}


def stored_formats(formats: Mapping[str, str], quant_backend: str) -> dict[str, str]:
    """The formats that matrices get: ``quant_backend`` may replace all of low bits by its own."""
    override = OVERRIDES.get(quant_backend)  # apply_precision refuses an unknown one
    own = None if override is None else override.format
    if own is None:
        return dict(formats)
    return {name: text if isinstance(parse_format(text), Float) else own for name, text in formats.items()}


def _quantized(
    name: str, weight_OI: Tensor, fmt: Format, quantizer: str, moments: InputMoments | None
) -> dict[str, Tensor]:
    """The stored tensors of the matrix ``name``, which errors name."""
    try:
        return quantize(weight_OI, fmt, quantizer, moments)
    except QuantError as error:
        raise QuantError(f"{name}: {error}") from None


def _real_positions(batch: Mapping[str, Any]) -> list[Tensor]:
    mask = batch.get("attention_mask")
    return [] if mask is None else [mask.bool()]


def stored_moments(spec: RunSpec) -> StoredMoments:
    """The moments of the inputs for the model and task of ``spec``, gathered if the cache lacks them."""
    return StoredMoments(measure_in_subprocess(gather, moments_place(spec), spec))
