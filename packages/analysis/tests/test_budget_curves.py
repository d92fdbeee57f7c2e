"""Curves of budgets are read from the files of ``bitrank plan --budgets``; other files are errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bitrank_analysis import AnalysisError, read_curves

POINTS = [
    {"budget": "1kB", "budget_bytes": 1000, "error": "too small"},
    {"budget": "4bits", "bytes": 4 * 2**20, "predicted_added_loss": 0.25},
    {"budget": "3bits", "bytes": 3 * 2**20, "predicted_added_loss": 0.5},
]


def write_curve(folder: Path, **changes: Any) -> Path:
    data = {
        "planner": "exact",
        "model": "/models/tiny",
        "task": "wiki",
        "sensitivities": "measured",
        "points": POINTS,
        **changes,
    }
    folder.mkdir(parents=True)
    (folder / "curve.json").write_text(json.dumps(data))
    return folder


def test_points_with_a_plan_are_read_in_order_of_bytes(tmp_path: Path) -> None:
    write_curve(tmp_path / "a/curve")
    (curve,) = read_curves(tmp_path)
    assert (curve.name, curve.model, curve.task, curve.planner) == ("curve", "/models/tiny", "wiki", "exact")
    found = [(point.budget, point.mib, point.added_loss) for point in curve.points]
    assert found == [("3bits", 3.0, 0.5), ("4bits", 4.0, 0.25)]


def test_a_curve_belongs_to_its_task_and_model_in_any_folder(tmp_path: Path) -> None:
    write_curve(tmp_path / "curve")
    (curve,) = read_curves(tmp_path)
    assert curve.is_of("wiki", ["…/tiny"]) and curve.is_of("wiki", ["other", "tiny"])
    assert not curve.is_of("movies", ["tiny"]) and not curve.is_of("wiki", ["other"])


def test_curves_without_a_task_or_a_plan_are_left_out(tmp_path: Path) -> None:
    write_curve(tmp_path / "prior", sensitivities="prior", task=None)
    write_curve(tmp_path / "empty", points=POINTS[:1])
    assert read_curves(tmp_path) == [] == read_curves(tmp_path / "absent")


NOT_FINITE = {"budget": "4bits", "bytes": 1, "predicted_added_loss": float("nan")}


@pytest.mark.parametrize("changes", [{"points": None}, {"points": [{"bytes": 1}]}, {"points": [NOT_FINITE]}])
def test_another_file_of_that_name_is_an_error(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_curve(tmp_path / "curve", **changes)
    with pytest.raises(AnalysisError, match=r"curve\.json is not a curve of `bitrank plan --budgets`"):
        read_curves(tmp_path)
