"""The six arms of the study. A seventh is one dataclass in ``rules.py`` (if no rule fits) and one line here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitrank.errors import UserError, unknown
from bitrank.rules import (
    AdaptiveRank,
    BlocksIn,
    ByRole,
    EdgesHigh,
    FixedRank,
    GivenBits,
    GivenRanks,
    PrecisionRule,
    RankByRole,
    RankRule,
    Sixteen,
)


@dataclass(frozen=True)
class Config:
    """One arm: how many bits, how much rank."""

    precision: PrecisionRule
    rank: RankRule
    family: str  # "baseline" or "joint"

    def as_data(self) -> dict[str, Any]:
        """The arm as plain data: it goes into the spec, so that changing an arm changes the ids of its runs."""
        return {
            "precision": {"rule": type(self.precision).__name__, **asdict(self.precision)},  # type: ignore[call-overload]
            "rank": {"rule": type(self.rank).__name__, **asdict(self.rank)},  # type: ignore[call-overload]
        }


CONFIGS: dict[str, Config] = {
    "B-FP": Config(Sixteen(), FixedRank(8), "baseline"),
    "B-Q4": Config(BlocksIn("nf4-dq"), FixedRank(8), "baseline"),
    "B-Ada": Config(Sixteen(), AdaptiveRank(12, 4), "baseline"),
    "Joint-1": Config(BlocksIn("nf4-dq"), AdaptiveRank(12, 4), "joint"),
    "Joint-2": Config(EdgesHigh("int8", "nf4-dq"), AdaptiveRank(12, 4), "joint"),
    "Joint-3": Config(ByRole({"attention": "int8", "ffn": "nf4-dq"}), RankByRole({"attention": 6, "ffn": 10}), "joint"),
}


def find_config(name: str, plan: str | None = None) -> Config:
    """The arm called ``name``, or the one that the plan file at ``plan`` describes. Raises :class:`UserError`."""
    if plan is not None:
        return _config_from_plan(Path(plan))
    if name not in CONFIGS:
        raise unknown("config", name, CONFIGS)
    return CONFIGS[name]


def _config_from_plan(path: Path) -> Config:
    expected = 'expected JSON like {"precision": {"module": "nf4"}, "ranks": {"module": 8}}'
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        bits, ranks = dict(data["precision"]), dict(data["ranks"])
    except OSError as error:
        raise UserError(f"cannot read the plan {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no plan: {expected}; got {type(error).__name__}: {error}") from error
    if not all(isinstance(fmt, str) for fmt in bits.values()) or not all(type(rank) is int for rank in ranks.values()):
        raise UserError(f"{path} is no plan: {expected}; formats must be text and ranks whole numbers")
    return Config(GivenBits(bits), GivenRanks(ranks), "joint")
