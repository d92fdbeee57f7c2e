"""The public names that need torch, imported when the first of them is read (see the package)."""

# ruff: noqa: F401 - the package takes its names from here

from bitrank_quant.apply import (
    Applied,
    Encoding,
    PrecisionPlan,
    Split,
    apply_precision,
    swap_weights,
    with_weight,
)
from bitrank_quant.backends.base import Backend, Decode, computes_as
from bitrank_quant.backends.choose import (
    available_overrides,
    check_fits,
    check_looks_up,
    check_takes_codes,
    choose_backend,
    override_for,
    rejected,
)
from bitrank_quant.backends.dequantize import decoder, stored_weight
from bitrank_quant.backends.probe import Trial, probe, try_format
from bitrank_quant.backends.reference import QuantEmbedding, QuantLinear, QuantWeight, encode_in_parts
from bitrank_quant.backends.registry import BACKENDS, REFERENCE
from bitrank_quant.errors import QuantError
from bitrank_quant.footprint import Footprint, is_mask, stored_bytes
from bitrank_quant.formats.base import Format
from bitrank_quant.formats.codebook import Codebook
from bitrank_quant.formats.float import Float, float_format
from bitrank_quant.formats.float8 import Float8
from bitrank_quant.formats.integer import Affine, Int8Row, Symmetric
from bitrank_quant.formats.noise import Noise, imitated_format
from bitrank_quant.formats.parse import FAMILIES, FORMATS, Family, parse_format
from bitrank_quant.kernels.rows import CompiledRows
from bitrank_quant.kernels.status import kernels_status
from bitrank_quant.matrices import (
    UnplannedTensor,
    WeightMatrix,
    block_matrices,
    followers,
    left_out,
    tied_modules,
    weight_matrices,
)
from bitrank_quant.packing import little_endian_words, unpack_bits
from bitrank_quant.quantizers import (
    QUANTIZERS,
    InputMoments,
    Quantizer,
    check_quantizable,
    find_quantizer,
    quantize,
)
from bitrank_quant.replaceable import readers_of_weights
from bitrank_quant.serialize import (
    has_layers,
    load_layers,
    load_quantized,
    save_layers,
    save_quantized,
    to_reference,
)
from bitrank_quant.sixteen import store_in_16_bits
from bitrank_quant.trained_scales import scale_numbers, set_scales, train_scales, why_no_scales
