"""The curve of predicted loss against bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from bitrank_analysis import AnalysisError
from bitrank_analysis.figures import budget_curve, save, spec

POINTS = [
    {"budget": "4bits", "bytes": 4 * 2**20, "predicted_added_loss": 0.25},
    {"budget": "3bits", "bytes": 3 * 2**20, "predicted_added_loss": 0.5},
]


def test_the_title_states_the_loss_at_both_ends_and_points_are_in_order_of_bytes() -> None:
    figure = budget_curve(POINTS, "tiny, planner exact")
    assert figure.title == "Predicted added loss is 0.5 nats in 3 MiB and 0.25 in 4 MiB"
    (values,) = spec(figure)["datasets"].values()
    assert [(row["budget"], row["mib"]) for row in values] == [("3bits", 3.0), ("4bits", 4.0)]
    assert budget_curve(POINTS[:1], "tiny").title == "The plan in 4 MiB is predicted to add 0.25 nats"


def test_only_the_requested_kinds_of_files_are_saved(tmp_path: Path) -> None:
    saved = save(budget_curve(POINTS, "tiny"), tmp_path, ("svg",))
    assert saved == [tmp_path / "curve.svg"] == list(tmp_path.iterdir())


def test_no_point_is_an_error() -> None:
    with pytest.raises(AnalysisError, match="at least one budget"):
        budget_curve([], "tiny")
