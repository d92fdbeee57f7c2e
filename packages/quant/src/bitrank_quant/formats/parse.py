"""Number formats for stored weights, as values.

A format says how one weight matrix is stored: how many bits a code has, how many weights share a scale, and
what else is kept beside the codes. It can encode a matrix into plain tensors, decode them again, and tell
their bytes without doing either. Its text form (``str(fmt)``) parses back with :func:`parse_format`, so a
plan can be plain text. :data:`FORMATS` lists the named ones, each with its ``about``, and :data:`FAMILIES`
the grammar of the others.

Encoding here is the reference: plain torch, any device, no kernels. Faster backends must agree with it (see
the tests). Decoding on a CPU takes :mod:`~bitrank_quant.kernels` where they can be compiled; their numbers
are those of the formats' own torch code, bit by bit. Left out: formats without a per-block scale, and
activation formats other than LLM.int8().
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

from bitrank_quant.errors import QuantError
from bitrank_quant.formats.base import Format
from bitrank_quant.formats.codebook import Codebook
from bitrank_quant.formats.float import FLOATS, Float
from bitrank_quant.formats.integer import Affine, Int8Row

_NAMED: list[Format] = [
    *(Float(name) for name in FLOATS),
    Int8Row(),
    Int8Row(activations=True),
    *(Codebook(name, double_quant=dq) for name in ("nf4", "fp4") for dq in (False, True)),
    *(Affine(bits, 64) for bits in (8, 6, 5, 4, 3, 2)),
]
FORMATS: dict[str, Format] = {str(fmt): fmt for fmt in _NAMED}


@dataclass(frozen=True)
class Family:
    """Formats that differ in numbers: a pattern for the whole text, and the format of a match."""

    pattern: str
    make: Callable[[re.Match[str]], Format]


# By grammar, as error messages and lists show it.
FAMILIES: dict[str, Family] = {
    "int<2-8>-g<size>": Family(r"int([2-8])-g([1-9]\d*)", lambda match: Affine(int(match[1]), int(match[2]))),
    "<nf4|fp4>-g<size>[-dq]": Family(
        r"(nf4|fp4)-g([1-9]\d*)(-dq)?", lambda match: Codebook(match[1], int(match[2]), bool(match[3]))
    ),
}


def parse_format(text: str) -> Format:
    """The format that ``text`` names. Raises :class:`QuantError` with the nearest valid names when there is
    none.
    """
    if text in FORMATS:
        return FORMATS[text]
    for family in FAMILIES.values():
        if match := re.fullmatch(family.pattern, text):
            return family.make(match)
    near = difflib.get_close_matches(text, FORMATS, n=3) or list(FORMATS)
    raise QuantError(f"unknown format {text!r}; nearest: {', '.join(near)} (also {', '.join(FAMILIES)})")
