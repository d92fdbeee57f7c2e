"""Number formats of stored weights, as values.

A format defines how a weight matrix is stored: bits per code, weights per scale, and further tensors. It
encodes a matrix into plain tensors, decodes them, and computes their bytes without doing either. Its text
form (``str(fmt)``) parses back with :func:`parse_format`, so a plan is plain text. :data:`FORMATS` lists the
named formats and :data:`FAMILIES` the grammar of the others.

The encoders are the reference: plain torch, any device, no kernels. Faster backends must agree with them (see
the tests). On a CPU, decoding uses :mod:`~bitrank_quant.kernels` if they can be compiled, with bit-identical
results. Not included: formats without a per-block scale, and activation formats other than LLM.int8().
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
from bitrank_quant.formats.float8 import Float8
from bitrank_quant.formats.integer import Affine, Int8Row, Symmetric
from bitrank_quant.formats.noise import Noise

_NAMED: list[Format] = [
    *(Float(name) for name in FLOATS),
    Int8Row(),
    Int8Row(activations=True),
    *(Codebook(name, double_quant=dq) for name in ("nf4", "fp4") for dq in (False, True)),
    *(Codebook("nf3", double_quant=dq) for dq in (False, True)),
    *(Affine(bits, 64) for bits in (8, 6, 5, 4, 3, 2)),
    *(Affine(bits, 64, double_quant=True) for bits in (4, 3, 2)),
    *(Symmetric(bits, 64) for bits in (8, 4)),
    Float8(),
]
FORMATS: dict[str, Format] = {str(fmt): fmt for fmt in _NAMED}


@dataclass(frozen=True)
class Family:
    """Formats that differ in numbers only: a pattern for the whole text, and a constructor from its match."""

    pattern: str
    make: Callable[[re.Match[str]], Format]


# By grammar, in the form that error messages and lists show.
FAMILIES: dict[str, Family] = {
    "int<2-8>-g<size>[-dq]": Family(
        r"int([2-8])-g([1-9]\d*)(-dq)?", lambda match: Affine(int(match[1]), int(match[2]), bool(match[3]))
    ),
    "sym<2-8>-g<size>": Family(
        r"sym([2-8])-g([1-9]\d*)", lambda match: Symmetric(int(match[1]), int(match[2]))
    ),
    "<nf4|nf3|fp4>-g<size>[-dq]": Family(
        r"(nf4|nf3|fp4)-g([1-9]\d*)(-dq)?", lambda match: Codebook(match[1], int(match[2]), bool(match[3]))
    ),
    "noise16-<low-bit format>": Family(r"noise16-(.+)", lambda match: Noise(parse_format(match[1]))),
}


def parse_format(text: str) -> Format:
    """The format named ``text``.

    Raises :class:`QuantError` with the nearest valid names if there is none, and for a format whose name does
    not contain its bits: tables and figures of stored runs read them from the name.
    """
    if text in FORMATS:
        return _with_bits_in_its_name(FORMATS[text])
    for family in FAMILIES.values():
        if match := re.fullmatch(family.pattern, text):
            return family.make(match)
    near = difflib.get_close_matches(text, FORMATS, n=3) or list(FORMATS)
    raise QuantError(f"unknown format {text!r}; nearest: {', '.join(near)} (also {', '.join(FAMILIES)})")


def _with_bits_in_its_name(fmt: Format) -> Format:
    name = str(fmt)
    number = re.search(r"\d+", name)
    if number is None or int(number[0]) != fmt.bits:
        letters = re.sub(r"\d+", "", name)
        problem = f"the first number in a format's name is its bits, but {name!r} has {fmt.bits} bits"
        raise QuantError(f"{problem}; name it, for example, {letters}{fmt.bits}")
    return fmt
