"""The format in which a runtime stores each matrix of a run: its own, or the nearest that the runtime has."""

from __future__ import annotations

from bitrank_quant import Float, parse_format, tied_modules
from bitrank_quant.sensitivity import block_name
from torch import nn

from bitrank.errors import UserError
from bitrank.export.rebuild import Rebuilt
from bitrank.export.requantize import shape_of
from bitrank.planning.restrictions import RUNTIMES, present_groups

_IN_16_BITS = "bf16"


def runtime_formats(rebuilt: Rebuilt, runtime: str) -> dict[str, str]:
    """Return the format in which ``runtime`` stores each matrix.

    A group that the runtime fuses shares the format of its member with the most bytes per weight.
    """
    entry, tied = RUNTIMES[runtime], tied_modules(rebuilt.inner)
    chosen = {}
    for name in dict.fromkeys([*rebuilt.layers(), *rebuilt.applied]):
        if name in tied:
            continue
        layer = rebuilt.layer(name)
        in_block = block_name(name) is not None and not isinstance(layer, nn.Embedding)
        quantizable = in_block or not entry.blocks_only
        chosen[name] = _IN_16_BITS
        if quantizable:
            chosen[name] = nearest(rebuilt.format(name), shape_of(layer), runtime)
    for tie in entry.fuses:
        for group in present_groups(list(chosen), tie):
            widest = max((chosen[name] for name in group), key=_bytes_per_weight)
            chosen |= dict.fromkeys(group, widest)
    return chosen


def nearest(text: str, shape: tuple[int, int], runtime: str) -> str:
    """Return the format ``text`` if ``runtime`` can store it in rows of this shape, else the nearest one.

    This is the one with the fewest bits that are not fewer than those of ``text``, and of these the one whose
    group is nearest in size; 16 bits if no group divides the rows. Raises :class:`UserError` for a runtime
    without formats of its own.
    """
    entry, planned = RUNTIMES[runtime], parse_format(text)
    if isinstance(planned, Float):
        return _IN_16_BITS
    if entry.can_store(planned) and not _padded(text, shape, runtime):
        return text
    if not entry.storable:
        raise UserError(f"the runtime {runtime} has no formats of its own to choose from")
    fitting = [one for one in entry.storable if not _padded(one, shape, runtime)]
    wide = [one for one in fitting if parse_format(one).bits >= planned.bits]
    width = planned.block or shape[1]
    return min(wide, key=lambda one: (parse_format(one).bits, _distance(one, width)), default=_IN_16_BITS)


def _padded(text: str, shape: tuple[int, int], runtime: str) -> bool:
    block = parse_format(text).block
    return RUNTIMES[runtime].whole_groups and block is not None and shape[1] % block != 0


def _distance(text: str, width: int) -> float:
    block = parse_format(text).block or width
    return max(block / width, width / block)


def _bytes_per_weight(text: str) -> int:
    return parse_format(text).nbytes((1, 1024))
