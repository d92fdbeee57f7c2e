"""Number formats for stored weights, as values.

A format says how one weight matrix is stored: how many bits a code has, how many weights share a scale, and what else is kept
beside the codes. It can encode a matrix into plain tensors, decode them again, and tell their bytes without doing either.
Its text form (``str(fmt)``) parses back with :func:`parse_format`, so a plan can be plain text:

    fp32 bf16 fp16         stored as is
    int8                   symmetric, one fp32 scale per row
    llm-int8               the same codes; activations are quantized too (LLM.int8(), Dettmers et al. 2022)
    int4-g64 int3-g64 …    affine, a bf16 scale and a bf16 minimum per group of 64 along the row (2 to 8 bits, any group size)
    nf4 fp4                4-bit code book, one fp32 absmax per block of 64 (QLoRA, Dettmers et al. 2023)
    nf4-dq fp4-dq          the same with the absmax values quantized to 8 bits in blocks of 256 (double quantization)

Encoding here is the reference: plain torch, any device, no kernels. Faster backends must agree with it (see the tests). Decoding on
a CPU takes :mod:`~bitrank_quant.kernels` where they can be compiled; their numbers are those of the formats' own torch code, bit by bit.
Left out: formats without a per-block scale, and activation formats other than LLM.int8().
"""

from __future__ import annotations

import difflib
import re

from bitrank_quant.errors import QuantError
from bitrank_quant.formats.base import Format
from bitrank_quant.formats.codebook import Codebook
from bitrank_quant.formats.float import FLOATS, Float
from bitrank_quant.formats.integer import Affine, Int8Row

# The named formats; `parse_format` also takes any bit width 2-8, group size and `-dq` in the same grammar.
_NAMED: list[Format] = [
    *(Float(name) for name in FLOATS),
    Int8Row(),
    Int8Row(activations=True),
    *(Codebook(name, double_quant=dq) for name in ("nf4", "fp4") for dq in (False, True)),
    *(Affine(bits, 64) for bits in (8, 6, 5, 4, 3, 2)),
]
FORMATS: dict[str, Format] = {str(fmt): fmt for fmt in _NAMED}


def parse_format(text: str) -> Format:
    """The format that ``text`` names. Raises :class:`QuantError` with the nearest valid names when there is none."""
    if text in FORMATS:
        return FORMATS[text]
    if match := re.fullmatch(r"int([2-8])-g([1-9]\d*)", text):
        return Affine(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"(nf4|fp4)-g([1-9]\d*)(-dq)?", text):
        return Codebook(match[1], int(match[2]), bool(match[3]))
    near = difflib.get_close_matches(text, FORMATS, n=3) or list(FORMATS)
    raise QuantError(
        f"unknown format {text!r}; nearest: {', '.join(near)} (also int<2-8>-g<size>, nf4-g<size>[-dq])"
    )
