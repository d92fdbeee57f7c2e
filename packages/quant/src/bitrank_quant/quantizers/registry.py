"""The quantizers by name, and :func:`quantize`, which applies one of them to a matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from bitrank_quant.backends.reference import encode_in_parts
from bitrank_quant.errors import QuantError
from bitrank_quant.formats.base import Format, Tensors
from bitrank_quant.formats.float import Float
from bitrank_quant.formats.float8 import Float8
from bitrank_quant.formats.noise import Noise
from bitrank_quant.quantizers.base import InputMoments
from bitrank_quant.quantizers.gptq import gptq
from bitrank_quant.quantizers.grids import grid_of
from bitrank_quant.quantizers.search import search

_CASTS = (Float, Float8, Noise)  # formats without codes to choose


@dataclass(frozen=True)
class Quantizer:
    """``encode`` returns the stored tensors of a matrix (O, I) in a format; ``needs_moments``: it cannot work
    without the second moments of the inputs; ``uses_moments``: they change its result; ``needs_grid``: it
    chooses codes on the grid of the format."""

    name: str
    about: str
    encode: Callable[[Tensor, Format, InputMoments | None], Tensors]
    uses_moments: bool = True
    needs_moments: bool = False
    needs_grid: bool = True


def _rtn(weight_OI: Tensor, fmt: Format, _moments: InputMoments | None) -> Tensors:
    return encode_in_parts(fmt, weight_OI)


def _gptq(weight_OI: Tensor, fmt: Format, moments: InputMoments | None) -> Tensors:
    assert moments is not None  # checked by quantize
    return gptq(weight_OI, fmt, moments)


QUANTIZERS: dict[str, Quantizer] = {
    quantizer.name: quantizer
    for quantizer in (
        Quantizer(
            "rtn",
            "the nearest code on a grid over each group's range",
            _rtn,
            uses_moments=False,
            needs_grid=False,
        ),
        Quantizer("search", "the clip and scale of each group with the least error at the inputs", search),
        Quantizer(
            "gptq",
            "search, and the error of each column compensated by the columns after it",
            _gptq,
            needs_moments=True,
        ),
    )
}


def find_quantizer(name: str) -> Quantizer:
    """The quantizer called ``name``. Raises :class:`QuantError` with all names when there is none."""
    if name not in QUANTIZERS:
        raise QuantError(f"unknown quantizer {name!r}; expected one of {', '.join(QUANTIZERS)}")
    return QUANTIZERS[name]


def check_quantizable(fmt: Format, quantizer: str) -> None:
    """Raise :class:`QuantError` if ``quantizer`` is unknown, or needs a grid that ``fmt`` does not have."""
    if find_quantizer(quantizer).needs_grid and not isinstance(fmt, _CASTS):
        grid_of(fmt)


def quantize(
    weight_OI: Tensor, fmt: Format, quantizer: str = "rtn", moments: InputMoments | None = None
) -> Tensors:
    """The stored tensors of ``weight_OI`` (O, I) in ``fmt``, on the device of the weights.

    ``fmt.decode(stored, (O, I), dtype)`` is the matrix that they represent. A floating-point format (8 bits
    too) and a stand-in have no codes to choose: every quantizer casts. ``moments`` are those of the inputs of
    the linear layer.

    Raises :class:`QuantError` for an unknown quantizer, for one that needs moments where there are none, and
    for moments of another width, not finite, or without any factorization.
    """
    chosen = find_quantizer(quantizer)
    if isinstance(fmt, _CASTS):
        return encode_in_parts(fmt, weight_OI)
    if moments is None and chosen.needs_moments:
        optional = [name for name, one in QUANTIZERS.items() if not one.needs_moments]
        raise QuantError(
            f"{quantizer} needs the second moments of the inputs; give calibration data, or take the "
            f"quantizer {' or '.join(optional)}"
        )
    if moments is not None:
        moments.check_width(weight_OI.shape[1])
    return chosen.encode(weight_OI, fmt, moments)
