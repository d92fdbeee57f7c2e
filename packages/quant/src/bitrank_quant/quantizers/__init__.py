"""Quantizers: the choice of codes and scales for a weight matrix in a format. The format fixes the stored
form."""

from bitrank_quant.quantizers.base import InputMoments
from bitrank_quant.quantizers.grid import Grid
from bitrank_quant.quantizers.grids import grid_of
from bitrank_quant.quantizers.registry import (
    QUANTIZERS,
    Quantizer,
    check_quantizable,
    find_quantizer,
    quantize,
)

__all__ = [
    "QUANTIZERS",
    "Grid",
    "InputMoments",
    "Quantizer",
    "check_quantizable",
    "find_quantizer",
    "grid_of",
    "quantize",
]
