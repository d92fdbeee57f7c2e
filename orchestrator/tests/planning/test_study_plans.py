"""Saved plans of a study are reused only for the same data, settings and code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from bitrank.errors import UserError
from bitrank.planning import study_plans
from bitrank.planning.make_plan import PlanRequest
from bitrank.planning.planner_studies import STUDIES
from bitrank.planning.study_arms import find_study_arm
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank_planner import SEARCHES

SMOKE, STUDY = PROFILES["smoke"], STUDIES["allocators"]


@pytest.mark.parametrize(
    ("made_with", "reused"), [({}, True), ({"max_length": 16}, False), ({"model": "tiny-gpt2"}, False)]
)
def test_saved_plan_is_reused_only_for_the_same_settings(
    made_with: dict[str, object], reused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "toy_sentences" / "exact-3bits.json"
    path.parent.mkdir()
    spec = study_plans._planning_spec(SMOKE, "toy_sentences", made_with)
    made_for = study_plans._made_for(spec, STUDY, "exact", "3bits")
    path.write_text(json.dumps({"precision": {}, "ranks": {}, "made_for": made_for}))

    def refuse(*_: object) -> None:
        raise ValueError("planned again")

    monkeypatch.setattr(study_plans, "make_plan", refuse)
    found = study_plans._planned(STUDY, SMOKE, "exact", "3bits", "toy_sentences", {}, tmp_path)
    assert found == (path if reused else "no plan: planned again")


def test_planning_time_becomes_further_steps(tmp_path: Path) -> None:
    study = replace(STUDIES["search-cost"], budgets=("3bits",))
    exact, longer = tmp_path / "exact-3bits.json", tmp_path / "equal-compute-3bits.json"
    seconds = {"planning_seconds": {"measuring": 3.0, "choosing": 1.1}}
    for path in (exact, longer):
        path.write_text(json.dumps({"precision": {}, "ranks": {}, **seconds}))
    spec = make_spec(SMOKE, "", "toy_sentences", {"plan": str(longer), "steps": 10})
    other = study_plans.longer_cells([spec, make_spec(SMOKE, "B-FP", "toy_sentences")], study)
    assert other == {"equal-compute-3bits": str(exact.resolve())}
    longer_spec = study_plans.trained_longer(spec, other[spec.config], seconds_per_step=0.5)
    assert longer_spec.steps == 10 + 9, "4.1 s at half a second each, rounded up"
    exact.unlink()
    with pytest.raises(UserError, match="trains longer by the planning time of exact, which has no plan"):
        study_plans.longer_cells([spec], study)


def test_best_search_takes_the_plan_of_least_trained_loss_and_counts_all_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses = dict(zip(SEARCHES, (0.5, 0.2, 0.4, 0.3), strict=True))

    def planned(_: object, request: PlanRequest) -> object:
        return SimpleNamespace(name=request.planner, trained_loss=losses[request.planner], choosing=2.0)

    monkeypatch.setattr(study_plans, "make_plan", planned)
    spec = make_spec(SMOKE, "B-FP", "toy_sentences")
    best, seconds = study_plans._best_of(find_study_arm("best-search"), spec, STUDY, "3bits")
    assert best.name == min(losses, key=losses.__getitem__) and seconds == 8.0
