"""Bits: number formats as values, backends that hold them, precision plans applied, and every stored byte counted."""

from bitrank_quant.apply import Applied, PrecisionPlan, Split, apply_precision
from bitrank_quant.backends import BACKENDS, OVERRIDES, Backend, Override
from bitrank_quant.choice import available_overrides, check_fits, choose_backend, override_for, passed_over
from bitrank_quant.codebooks import Codebook
from bitrank_quant.decoders import decoder, stored_weight
from bitrank_quant.errors import QuantError
from bitrank_quant.floats import Float, float_format
from bitrank_quant.footprint import Footprint, stored_bytes
from bitrank_quant.formats import FORMATS, parse_format
from bitrank_quant.integers import Affine, Int8Row
from bitrank_quant.kernels import kernels_status
from bitrank_quant.layout import Format
from bitrank_quant.matrices import LeftOut, WeightMatrix, block_matrices, left_out, tied_modules, weight_matrices
from bitrank_quant.reference import QuantEmbedding, QuantLinear, QuantWeight
from bitrank_quant.saved import load_quantized, save_quantized, to_reference
from bitrank_quant.sixteen import hold_in_16_bits
from bitrank_quant.trials import Trial, probe, try_format
from bitrank_quant.understood import readers_of_weights

__version__ = "0.1.0"
__all__ = [
    "BACKENDS",
    "FORMATS",
    "OVERRIDES",
    "Affine",
    "Applied",
    "Backend",
    "Codebook",
    "Float",
    "Footprint",
    "Format",
    "Int8Row",
    "LeftOut",
    "Override",
    "PrecisionPlan",
    "QuantEmbedding",
    "QuantError",
    "QuantLinear",
    "QuantWeight",
    "Split",
    "Trial",
    "WeightMatrix",
    "apply_precision",
    "available_overrides",
    "block_matrices",
    "check_fits",
    "choose_backend",
    "decoder",
    "float_format",
    "hold_in_16_bits",
    "kernels_status",
    "left_out",
    "load_quantized",
    "override_for",
    "parse_format",
    "passed_over",
    "probe",
    "readers_of_weights",
    "save_quantized",
    "stored_bytes",
    "stored_weight",
    "tied_modules",
    "to_reference",
    "try_format",
    "weight_matrices",
]
