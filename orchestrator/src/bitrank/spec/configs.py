"""The six arms of the study. A new arm is one entry here, and a dataclass in ``rules.py`` if no rule fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from bitrank.errors import UserError, unknown
from bitrank.spec import rules
from bitrank.spec.plan_file import read_plan


@dataclass(frozen=True)
class Config:
    """One arm of the study: a precision rule and a rank rule."""

    precision: rules.PrecisionRule
    rank: rules.RankRule
    family: str  # "baseline" or "joint"
    about: str = ""

    def as_data(self) -> dict[str, Any]:
        """The arm as plain data. The spec contains it, so a changed arm changes the ids of its runs."""
        return {"precision": _rule_data(self.precision), "rank": _rule_data(self.rank)}


def _rule_data(rule: rules.PrecisionRule | rules.RankRule) -> dict[str, Any]:
    return {"rule": type(rule).__name__, **asdict(rule)}  # type: ignore[call-overload]


CONFIGS: dict[str, Config] = {
    "B-FP": Config(rules.Sixteen(), rules.FixedRank(8), "baseline", "LoRA in 16 bits"),
    "B-Q4": Config(rules.BlocksIn("nf4-dq"), rules.FixedRank(8), "baseline", "QLoRA: NF4 blocks, rank 8"),
    "B-Ada": Config(rules.Sixteen(), rules.AdaptiveRank(12, 4), "baseline", "AdaLoRA in 16 bits"),
    "Joint-1": Config(
        rules.BlocksIn("nf4-dq"), rules.AdaptiveRank(12, 4), "joint", "NF4 blocks with AdaLoRA"
    ),
    "Joint-2": Config(
        rules.EdgesHigh("int8", "nf4-dq"),
        rules.AdaptiveRank(12, 4),
        "joint",
        "int8 at the edges, NF4 between, AdaLoRA",
    ),
    "Joint-3": Config(
        rules.ByRole({"attention": "int8", "ffn": "nf4-dq"}),
        rules.RankByRole({"attention": 6, "ffn": 10}),
        "joint",
        "attention int8 at rank 6, FFN NF4 at rank 10",
    ),
}


def find_config(name: str, plan: str | None = None, tuned: Mapping[str, int] | None = None) -> Config:
    """Return the arm ``name``, or the arm of the plan file at ``plan``, with the changes in ``tuned``.

    ``tuned`` replaces fields of the arm's rank rule, such as ``{"rank": 16}``. Raises :class:`UserError`.
    """
    if plan is None and name not in CONFIGS:
        raise unknown("config", name, CONFIGS)
    config = CONFIGS[name] if plan is None else config_of_plan(read_plan(Path(plan)), plan)
    tunable = [f.name for f in fields(config.rank)]  # type: ignore[arg-type]
    for key in tuned or {}:
        if key not in tunable:
            raise UserError(f"the rank rule of {name} has no {key!r} to set; it has {', '.join(tunable)}")
    return replace(config, rank=replace(config.rank, **tuned)) if tuned else config  # type: ignore[type-var]


def config_of_plan(plan: Mapping[str, Any], source: str) -> Config:
    """Return the arm that a plan's data describes; errors name ``source``.

    With ``adaptive``, such as ``{"init_r": 12, "target_r": 8}``, AdaLoRA distributes rank; with ``rank_rule``,
    such as ``{"name": "ffn-only", "rank": 8}``, a rule does. ``ranks`` is then not used.
    """
    return Config(rules.GivenBits(plan["precision"], plan["shapes"]), _rank_rule_of(plan, source), "joint")


def _rank_rule_of(plan: Mapping[str, Any], source: str) -> rules.RankRule:
    adaptive, named = plan["adaptive"], plan["rank_rule"]
    if adaptive and named:
        raise UserError(f"{source} is not a plan: it has adaptive and rank_rule; remove one")
    try:
        if adaptive:
            return rules.AdaptiveRank(**adaptive)
        return _named_rule(**named) if named else rules.GivenRanks(plan["ranks"])
    except TypeError as error:
        raise UserError(
            f"{source} is not a plan: adaptive takes init_r, target_r and shrink, rank_rule takes name and rank; "
            f"{error}"
        ) from error


def _named_rule(name: str, rank: int) -> rules.RankRule:
    if name not in rules.RANK_RULES:
        raise unknown("rank rule", name, rules.RANK_RULES)
    return rules.RANK_RULES[name].make(rank)
