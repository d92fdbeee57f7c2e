"""An arm of the study whose formats and ranks are fixed by rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bitrank.spec.rule_interface import PrecisionRule, RankRule


@dataclass(frozen=True)
class Config:
    """One arm of the study: a precision rule and a rank rule."""

    precision: PrecisionRule
    rank: RankRule
    family: str  # "baseline", "joint", "encoder-decoder" or "system"
    about: str = ""
    source: str = ""  # the publication that the arm follows; empty for an arm of this project
    settings: Mapping[str, Any] = field(default_factory=dict)  # defaults of the run's fields, such as init

    def as_data(self) -> dict[str, Any]:
        """The arm as plain data. The spec contains it, so a changed arm changes the ids of its runs.

        The spec contains the fields in ``settings`` themselves.
        """
        return {"precision": _rule_data(self.precision), "rank": _rule_data(self.rank)}


def _rule_data(rule: PrecisionRule | RankRule) -> dict[str, Any]:
    return {"rule": type(rule).__name__, **asdict(rule)}  # type: ignore[call-overload]
