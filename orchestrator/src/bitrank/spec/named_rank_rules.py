"""Rank rules that a plan file can name, with their parameters as plain data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from bitrank.errors import UserError, shortened, unknown
from bitrank.spec.pruned_rules import DynamicRank, ReducedRank
from bitrank.spec.rule_interface import RankRule
from bitrank.spec.rules import FixedRank, RankOn
from bitrank.spec.system_rules import DecomposedRank, PooledRank, ScalesOnly

_LARGEST = 2**16  # upper bound of a rule's parameter, equal to that of ranks


@dataclass(frozen=True)
class NamedRankRule:
    """A rule that a plan file can name as ``rank_rule``; ``make`` takes the parameters, whole numbers."""

    about: str
    make: Callable[..., RankRule]

    @property
    def parameters(self) -> dict[str, bool]:
        """The names of all parameters, and whether each must be given."""
        found = inspect.signature(self.make).parameters
        return {name: one.default is inspect.Parameter.empty for name, one in found.items()}


RANK_RULES: dict[str, NamedRankRule] = {
    "uniform": NamedRankRule("the same rank on every matrix of the blocks", FixedRank),
    "attention-only": NamedRankRule("on attention, no adapter elsewhere", partial(RankOn, "attention")),
    "ffn-only": NamedRankRule("on feed-forward parts, no adapter elsewhere", partial(RankOn, "ffn")),
    "train-then-reduce": NamedRankRule("at 4 × the rank, then the largest directions are kept", ReducedRank),
    "dora-weight": NamedRankRule("DoRA, weight-decomposed: a trained length per row", DecomposedRank),
    "dora-dynamic": NamedRankRule("DoRA, dynamic rank: from init_r to a mean of target_r", DynamicRank),
    "qa-lora": NamedRankRule("QA-LoRA: on inputs summed over groups, merges exactly", PooledRank),
    "scales-only": NamedRankRule("no adapter: scales and minima of the formats are trained", ScalesOnly),
}


def named_rank_rule(data: Mapping[str, Any]) -> RankRule:
    """The rule that ``data`` describes, such as ``{"name": "qa-lora", "rank": 8, "group": 32}``.

    Raises :class:`UserError` for an unknown name or parameter, a missing one, and values that do not fit.
    """
    name = data.get("name")
    if not isinstance(name, str) or name not in RANK_RULES:
        raise unknown("name", str(name), RANK_RULES) if name is not None else UserError("name is missing")
    entry = RANK_RULES[name]
    given = {key: value for key, value in data.items() if key != "name"}
    listed = ", ".join(entry.parameters) or "no parameters"
    for key, value in given.items():
        if key not in entry.parameters:
            raise UserError(f"unknown key of rank_rule {shortened(key)}; {name} takes {listed}")
        if type(value) is not int:
            raise UserError(f"{key} must be a whole number, got {shortened(value)}")
        if not 1 <= value <= _LARGEST:
            bound = "1 or more" if value < 1 else f"{_LARGEST} or less"
            raise UserError(f"{key} must be {bound}, got {shortened(value)}")
    for key, needed in entry.parameters.items():
        if needed and key not in given:
            raise UserError(f"{key} is missing: the rank rule {name} takes {listed}")
    return entry.make(**given)
