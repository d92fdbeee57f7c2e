"""Number formats as values, backends that store them, precision plans, and exact byte counts.

``OVERRIDES`` and ``Override`` are imported at once, so that a name given on the command line can be checked
without torch. The other names import torch when the first of them is read.
"""

# ruff: noqa: F403, F405 - the wildcard import is for type checkers and documentation only

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitrank_quant.backends.overrides import OVERRIDES, Override

if TYPE_CHECKING:
    from bitrank_quant.public import *

__version__ = "0.1.0"
__all__ = [
    "BACKENDS",
    "FAMILIES",
    "FORMATS",
    "OVERRIDES",
    "QUANTIZERS",
    "REFERENCE",
    "Affine",
    "Applied",
    "Backend",
    "Codebook",
    "CompiledRows",
    "Decode",
    "Encoding",
    "Family",
    "Float",
    "Float8",
    "Footprint",
    "Format",
    "InputMoments",
    "Int8Row",
    "Noise",
    "Override",
    "PrecisionPlan",
    "QuantEmbedding",
    "QuantError",
    "QuantLinear",
    "QuantWeight",
    "Quantizer",
    "Split",
    "Symmetric",
    "Trial",
    "UnplannedTensor",
    "WeightMatrix",
    "apply_precision",
    "available_overrides",
    "block_matrices",
    "check_fits",
    "check_looks_up",
    "check_quantizable",
    "check_takes_codes",
    "choose_backend",
    "computes_as",
    "decoder",
    "encode_in_parts",
    "find_quantizer",
    "float_format",
    "followers",
    "has_layers",
    "imitated_format",
    "is_mask",
    "kernels_status",
    "left_out",
    "little_endian_words",
    "load_layers",
    "load_quantized",
    "override_for",
    "parse_format",
    "probe",
    "quantize",
    "readers_of_weights",
    "rejected",
    "save_layers",
    "save_quantized",
    "scale_numbers",
    "set_scales",
    "store_in_16_bits",
    "stored_bytes",
    "stored_weight",
    "swap_weights",
    "tied_modules",
    "to_reference",
    "train_scales",
    "try_format",
    "unpack_bits",
    "weight_matrices",
    "why_no_scales",
    "with_weight",
]


def __getattr__(name: str) -> Any:
    """The public name ``name``. Raises :class:`AttributeError` if the package has none of that name."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bitrank_quant import public

    return getattr(public, name)
