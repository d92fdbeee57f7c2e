"""Rank rules that a plan file can name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bitrank.spec.pruned_rules import ReducedRank
from bitrank.spec.rule_interface import RankRule
from bitrank.spec.rules import FixedRank, RankOn


@dataclass(frozen=True)
class NamedRankRule:
    """A rule that a plan file can name as ``rank_rule``; ``make`` takes the rank."""

    about: str
    make: Callable[[int], RankRule]


RANK_RULES: dict[str, NamedRankRule] = {
    "uniform": NamedRankRule("the same rank on every matrix of the blocks", FixedRank),
    "attention-only": NamedRankRule("on attention, no adapter elsewhere", partial(RankOn, "attention")),
    "ffn-only": NamedRankRule("on feed-forward parts, no adapter elsewhere", partial(RankOn, "ffn")),
    "train-then-reduce": NamedRankRule("at 4 × the rank, then the largest directions are kept", ReducedRank),
}
