"""Published systems at a byte budget: the largest rank of an arm, in formats as close to its own as fit.

An arm keeps its own formats if a rank of :data:`LEAST_RANK` fits the budget. If it does not, the first of
these formats is taken in which it fits:

1. the arm's format of the fewest bits in larger groups, the rest unchanged;
2. the same, and the matrices that the arm keeps in 16 bits (embeddings and heads) in that format too;
3. that format, or the same kind in larger groups or with fewer bits, on all matrices.

So embeddings are quantized before blocks get fewer bits, which would be the greater disadvantage. Adapters
that fit their own groups only (QA-LoRA, L4Q, trained scales) change groups in the last step alone. Then the
rank is raised as far as the budget allows, above the arm's own if there are bytes left. Ranks that are pruned
count as the mean rank that remains. No rank is larger than the arm's start has directions for. Only shapes
are needed, so this takes milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from bitrank_quant import Float, Format, QuantError, WeightMatrix, parse_format

from bitrank.errors import UserError
from bitrank.planning.budget import Sizes
from bitrank.planning.kept_ranks import adapter_bytes, kept_ranks
from bitrank.spec.config import Config
from bitrank.spec.inits import INITS
from bitrank.spec.rule_interface import Formats, RankRule, Ranks
from bitrank.spec.rules import GivenBits, GivenRanks

LEAST_RANK = 4  # half the rank of B-Q4: with less, an arm would be compared with almost no adapter
# Offered in addition to an arm's own group, in this order: powers of two, which runtimes hold, before groups
# that divide widths such as 576, where a group of 128 is padded and saves nothing.
_GROUPS = (64, 128, 96, 192)
_RANKS = ("rank", "init_r", "target_r")  # fields of a rank rule that are ranks


@dataclass(frozen=True)
class Fitted:
    """An arm at a budget: formats by matrix, and the fields of its rank rule that differ from its own.

    ``ranks`` are those that remain after training. ``nbytes`` is the size of the whole model with adapters.
    """

    precision: Formats
    fields: dict[str, Any]
    ranks: Ranks
    nbytes: int


def fit_arm(config: Config, sizes: Sizes, budget: int) -> Fitted:
    """Return ``config`` in the formats and ranks that come closest to ``budget`` bytes without exceeding it.

    Raises :class:`UserError` with the reason if the arm does not support the model, or takes more bytes in
    every format of its kind.
    """
    blocks = [matrix for matrix in sizes.outline.matrices if matrix.adaptable]
    init = INITS[config.settings.get("init", "default")]
    most = min(init.largest_rank(matrix.shape) for matrix in blocks)
    smallest: tuple[int, str] | None = None
    for bits in _formats_to_try(config, sizes.outline.matrices):
        rule = _in_formats(config.rank, blocks, bits)
        if not all(rule.takes(matrix.shape) for matrix in blocks):
            continue
        try:
            rule.check_formats(bits, rule.assign_ranks(blocks))
            weights = sizes.of_config(Config(GivenBits(bits), GivenRanks({}), config.family))
        except QuantError:  # no backend stores a matrix of this shape in this format
            continue
        fitted, least = _with_rank(rule, blocks, bits, budget - weights, most)
        if fitted is not None:
            changed = _changed(config.rank, rule) | fitted.fields
            return replace(fitted, fields=changed, nbytes=fitted.nbytes + weights)
        smallest = min(filter(None, (smallest, (weights + least, _named(bits)))))
    taken = "no format" if smallest is None else f"{smallest[0]:,} bytes at least ({smallest[1]})"
    raise UserError(f"does not fit into {budget:,} bytes: it takes {taken}")


def _in_formats(rule: RankRule, blocks: Sequence[WeightMatrix], bits: Formats) -> RankRule:
    """``rule`` for the blocks' format, if they have the same."""
    formats = {bits[matrix.name] for matrix in blocks}
    return rule.in_format(formats.pop()) if len(formats) == 1 else rule


def _changed(own: RankRule, other: RankRule) -> dict[str, Any]:
    """The fields of ``other`` that differ from those of ``own``, a rule of the same class."""
    names = [entry.name for entry in fields(own)]  # type: ignore[arg-type]
    return {name: getattr(other, name) for name in names if getattr(other, name) != getattr(own, name)}


def _formats_to_try(config: Config, matrices: Sequence[WeightMatrix]) -> Iterator[Formats]:
    """Yield formats by matrix in the order of the module's description, the arm's own first."""
    own = config.precision.assign_formats(matrices)
    yield own
    low = {text for text in own.values() if not isinstance(parse_format(text), Float)}
    if not low:  # an arm in 16 bits has no format of fewer bits
        return
    lowest = min(low, key=lambda text: _stored_bits(parse_format(text)))
    coarser = list(_coarser(lowest))
    bits = parse_format(lowest).bits
    same_bits = [text for text in coarser if parse_format(text).bits == bits]
    if config.rank.own_formats:
        same_bits = []
    for text in same_bits:
        yield {name: text if given == lowest else given for name, given in own.items()}
    high = low - {lowest}
    for text in (lowest, *same_bits):
        yield {name: given if given in high else text for name, given in own.items()}
    for text in (lowest, *coarser):
        yield dict.fromkeys(own, text)


def _coarser(text: str) -> Iterator[str]:
    """Yield formats of the kind of ``text`` that store fewer bits: larger groups first, then fewer bits."""
    fmt = parse_format(text)
    if fmt.block is None:
        return
    kind, ending = re.split(r"\d", text)[0], "-dq" if text.endswith("-dq") else ""
    groups = [fmt.block, *(group for group in _GROUPS if group > fmt.block)]
    for bits in range(fmt.bits, 1, -1):
        for group in groups:
            try:
                found = parse_format(f"{kind}{bits}-g{group}{ending}")
            except QuantError:  # a code book exists for some numbers of bits only
                continue
            if _stored_bits(found) < _stored_bits(fmt):
                yield str(found)


def _stored_bits(fmt: Format) -> float:
    """Bits per weight with scales, of a large matrix."""
    return fmt.nbytes((1024, 1024)) * 8 / 2**20


def _with_rank(
    rule: RankRule, blocks: Sequence[WeightMatrix], bits: Formats, left: int, most: int
) -> tuple[Fitted | None, int]:
    """Return ``rule`` at the largest rank that takes at most ``left`` bytes, and the bytes of the least rank.

    No rank that ``rule`` starts with is above ``most``, unless its own is.
    The first value is None if the least rank does not fit. ``nbytes`` is that of the adapters alone.
    """
    own = _own_rank(rule)
    if own is None or adapter_bytes(rule, blocks) == adapter_bytes(_resized(rule, own + 1), blocks):
        nbytes = adapter_bytes(rule, blocks)  # the rank changes no byte, so it stays
        return (Fitted(bits, {}, kept_ranks(rule, blocks), nbytes) if nbytes <= left else None), nbytes
    largest = max(own, most * own // _first_rank(rule))
    low = min(LEAST_RANK, own)
    least = adapter_bytes(_resized(rule, low), blocks)
    if least > left:
        return None, least
    while low < largest:  # bisection: bytes grow with the rank
        middle = (low + largest + 1) // 2
        low, largest = (
            (middle, largest) if adapter_bytes(_resized(rule, middle), blocks) <= left else (low, middle - 1)
        )
    chosen = _resized(rule, low)
    return Fitted(
        bits, _changed(rule, chosen), kept_ranks(chosen, blocks), adapter_bytes(chosen, blocks)
    ), least


def _rank_fields(rule: RankRule) -> dict[str, Any]:
    """The fields of ``rule`` that are ranks, by name: numbers, or numbers by role."""
    values = {entry.name: getattr(rule, entry.name) for entry in fields(rule)}  # type: ignore[arg-type]
    return {
        name: value
        for name, value in values.items()
        if name in _RANKS
        or (isinstance(value, Mapping) and all(type(rank) is int for rank in value.values()))
    }


def _own_rank(rule: RankRule) -> int | None:
    """The rank that ``rule`` keeps, the largest of several; None for a rule without one."""
    kept = [value for name, value in _rank_fields(rule).items() if name != "init_r"]
    return max((_largest(value) for value in kept), default=None)


def _first_rank(rule: RankRule) -> int:
    """The largest rank that ``rule`` starts with."""
    return max(_largest(value) for value in _rank_fields(rule).values())


def _largest(value: int | Mapping[str, int]) -> int:
    return max(value.values()) if isinstance(value, Mapping) else value


def _resized(rule: RankRule, rank: int) -> RankRule:
    """``rule`` with its ranks in the same proportions, so that it keeps ``rank``."""
    own = _own_rank(rule)
    assert own is not None, "only a rule with a rank is resized"

    def scaled(value: int) -> int:
        return max(1, round(value * rank / own))

    changed: dict[str, Any] = {}
    for name, value in _rank_fields(rule).items():
        is_mapping = isinstance(value, Mapping)
        changed[name] = {role: scaled(r) for role, r in value.items()} if is_mapping else scaled(value)
    if "init_r" in changed:  # pruning needs a rank to prune, also from rank 1
        changed["init_r"] = max(changed["init_r"], changed["target_r"] + 1)
    return replace(rule, **changed)  # type: ignore[type-var]


def _named(bits: Formats) -> str:
    """The formats in ``bits``, most frequent first."""
    texts = list(bits.values())
    return ", ".join(sorted(set(texts), key=texts.count, reverse=True))
