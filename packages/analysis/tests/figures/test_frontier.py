"""The frontier of budgets: predictions and measurements in nats, on axes of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bitrank_analysis import AnalysisError, BudgetCurve, load_study, open_store
from bitrank_analysis.budget_curves import CurvePoint
from bitrank_analysis.evidence import Evidence, gather
from bitrank_analysis.figures import budget_frontier, spec
from bitrank_analysis.report import collect
from studies import MIB, add_study

POINTS = (CurvePoint("3bits", 16.0, 0.5), CurvePoint("4bits", 21.0, 0.25))
CURVE = BudgetCurve("curve", "tiny", "wiki", "exact", POINTS)
ADAPTER = 4 * 768 * 4 * 6 * 2 / 2**20  # MiB of the planned arms' adapters


@pytest.fixture
def wiki(maker: Any, tmp_path: Path) -> Evidence:
    add_study(maker, arms=("B-FP", "Plan-A", "Plan-B"), tasks=("wiki",), seeds=2)
    return gather(load_study(open_store(str(tmp_path))), "wiki")


def rows(figure: Any, *keys: str) -> list[dict[str, Any]]:
    """The rows of the data set that has all of ``keys``."""
    sets = spec(figure)["datasets"].values()
    return next(found for found in sets if set(keys) <= set(found[0]))


def test_predictions_and_measurements_have_their_exact_values(wiki: Evidence) -> None:
    figure = budget_frontier(wiki, [CURVE])
    predicted = [(row["budget"], row["mib"], row["loss"]) for row in rows(figure, "budget")]
    assert predicted == [("3bits", 16.0, 0.5), ("4bits", 21.0, 0.25)]
    losses = wiki.runs.groupby("config")["loss"].mean()
    measured = {row["config"]: (row["mib"], row["loss"]) for row in rows(figure, "config")}
    stored = pytest.approx(MIB["int8"] + ADAPTER)
    assert measured == {name: (stored, pytest.approx(losses[name])) for name in ("Plan-A", "Plan-B")}
    assert figure.title.startswith("Predicted added loss is 0.5 nats in 16 MiB and 0.25 in 21 MiB; the least")


def test_units_are_named_and_each_panel_has_its_own_axis_of_loss(wiki: Evidence) -> None:
    above, below = spec(budget_frontier(wiki, [CURVE]))["vconcat"]
    titles = [{layer["encoding"]["y"].get("title") for layer in panel["layer"]} for panel in (above, below)]
    assert titles == [{"Predicted added loss, nats"}, {"Test loss, nats"}]
    assert below["layer"][0]["encoding"]["x"]["title"] == "Model and adapters, MiB"


def test_arms_beyond_the_budgets_are_named_and_not_drawn(wiki: Evidence) -> None:
    assert "Larger than the budgets and not drawn is B-FP." in budget_frontier(wiki, [CURVE]).note
    small = BudgetCurve("curve", "tiny", "wiki", "exact", (CurvePoint("1bits", 2.0, 3.0),))
    figure = budget_frontier(wiki, [small])
    assert figure.title.endswith("no arm of this size was measured") and len(spec(figure)["vconcat"]) == 1


def test_curves_of_two_planners_are_told_apart(wiki: Evidence) -> None:
    other = BudgetCurve("second", "tiny", "wiki", "greedy", POINTS)
    labels = {row["curve"] for row in rows(budget_frontier(wiki, [CURVE, other]), "curve")}
    assert labels == {"exact", "greedy"}
    again = BudgetCurve("second", "tiny", "wiki", "exact", POINTS)
    labels = {row["curve"] for row in rows(budget_frontier(wiki, [CURVE, again]), "curve")}
    assert labels == {"exact (curve)", "exact (second)"}


def test_the_report_draws_a_curve_of_its_task_and_model_only(maker: Any, tmp_path: Path) -> None:
    add_study(maker, arms=("B-Q4", "Plan-A"), tasks=("movies", "wiki"))
    study = load_study(open_store(str(tmp_path)))
    other = BudgetCurve("other", "another-model", "movies", "exact", POINTS)
    movies, wiki = collect(study, curves=[CURVE, other]).sections
    assert [figure.name for figure in wiki.figures[:2]] == ["frontier-wiki", "forest-wiki"]
    assert not any(figure.name.startswith("frontier") for figure in movies.figures)


def test_no_curve_is_an_error(wiki: Evidence) -> None:
    with pytest.raises(AnalysisError, match="expected a curve of budgets for wiki"):
        budget_frontier(wiki, [])
