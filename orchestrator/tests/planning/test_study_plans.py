"""Saved plans of a study are reused only for the same data, settings and code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bitrank.errors import UserError
from bitrank.planning import study_plans
from bitrank.planning.learning_rates import cell_of
from bitrank.planning.make_plan import PlanRequest
from bitrank.planning.planner_studies import STUDIES
from bitrank.planning.study_arms import find_study_arm
from bitrank.planning.study_plan_place import plan_dependencies, plan_path
from bitrank.spec.configs import CONFIGS, Config
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.spec.rules import FixedRank
from bitrank.spec.run_spec import RunSpec
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
    made_for = plan_dependencies(spec, STUDY, "exact", "3bits", made_with)
    path.write_text(json.dumps({"precision": {}, "ranks": {}, "made_for": made_for}))

    def refuse(*_: object) -> None:
        raise ValueError("planned again")

    monkeypatch.setattr(study_plans, "make_plan", refuse)
    found = study_plans._planned(STUDY, SMOKE, "exact", "3bits", "toy_sentences", {}, tmp_path)
    assert found == (path if reused else "no plan: planned again")


@pytest.mark.parametrize("arm", ["Plan-Q4", "exact"])
@pytest.mark.parametrize(("overrides", "quantizer"), [({}, "search"), ({"quantizer": "rtn"}, "rtn")])
def test_plans_are_made_for_the_quantizer_of_the_runs(
    arm: str, overrides: dict[str, str], quantizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def planned(spec: RunSpec, _: PlanRequest) -> None:
        made.append(spec.quantizer)
        raise ValueError("enough")

    monkeypatch.setattr(study_plans, "make_plan", planned)
    spec = study_plans._planning_spec(SMOKE, "toy_sentences", overrides)
    with pytest.raises(ValueError, match="enough"):
        study_plans._planned_data(spec, STUDY, arm, "9bits", overrides)
    assert made == [quantizer]


def test_plans_of_a_users_folder_stay_in_the_results_and_are_apart_from_one_of_the_same_name(
    tmp_path: Path,
) -> None:
    places = []
    for parent in ("one", "two"):
        data = tmp_path / parent / "data"
        data.mkdir(parents=True)
        (data / "train.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n' * 20)
        spec = RunSpec("B-FP", str(data), "tiny-bert")
        places.append(plan_path(tmp_path / "plans", spec, "exact", "=B-Q4"))
    assert [place.relative_to(tmp_path / "plans").name for place in places] == ["exact-B-Q4.json"] * 2
    assert len({place.parent for place in places}) == 2
    assert plan_path(tmp_path, RunSpec("B-FP", "toy_articles", ""), "exact", "3bits") == (
        tmp_path / "toy_articles" / "exact-3bits.json"
    )


@pytest.mark.parametrize("changed", ["rule", "settings"])
def test_plan_is_made_again_after_an_edit_of_the_config_that_it_follows(
    changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = study_plans._planning_spec(SMOKE, "toy_sentences", {})
    before = plan_dependencies(spec, STUDY, "LoftQ-Q4", "3bits", {})
    config = CONFIGS["LoftQ-Q4"]
    assert isinstance(config, Config)
    edits: dict[str, dict[str, Any]] = {
        "rule": {"rank": FixedRank(9)},
        "settings": {"settings": {"init": "qera"}},
    }
    monkeypatch.setitem(CONFIGS, "LoftQ-Q4", replace(config, **edits[changed]))
    assert plan_dependencies(spec, STUDY, "LoftQ-Q4", "3bits", {}) != before


@pytest.mark.parametrize("arm", ["exact", "uniform", "B-Ada"])
def test_plan_is_made_again_after_an_edit_of_the_config_whose_bytes_are_its_budget(
    arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = study_plans._planning_spec(SMOKE, "toy_sentences", {})
    before = plan_dependencies(spec, STUDY, arm, "=B-Q4", {})
    config = CONFIGS["B-Q4"]
    assert isinstance(config, Config)
    monkeypatch.setitem(CONFIGS, "B-Q4", replace(config, rank=FixedRank(16)))
    assert plan_dependencies(spec, STUDY, arm, "=B-Q4", {}) != before


@pytest.mark.parametrize(
    ("arm", "counts"),
    [
        ("exact", True),
        ("modelopt-like", True),
        ("gradient_probe", True),
        ("three_bits_on_least_sensitive", True),
    ]
    + [
        (name, False)
        for name in ("hand-made", "all-4", "edges_high", "linear_decay", "random-plan", "uniform")
    ],
)
def test_the_seconds_of_the_measurement_count_for_planners_that_read_it(arm: str, counts: bool) -> None:
    assert find_study_arm(arm).measures is counts


@pytest.mark.parametrize(
    ("arm", "counts"), [("exact", True), ("uniform", True), ("adalora", False), ("equal-compute", False)]
)
def test_the_measurement_counts_for_starts_that_read_it_too(arm: str, counts: bool) -> None:
    assert find_study_arm(arm).needs_measurement is counts


def test_an_outdated_plan_is_removed_if_none_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("too small")

    monkeypatch.setattr(study_plans, "make_plan", refuse)
    path = tmp_path / "toy_sentences" / "exact-3bits.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"precision": {}, "ranks": {}, "made_for": "earlier code"}))
    found = study_plans._planned(STUDY, SMOKE, "exact", "3bits", "toy_sentences", {}, tmp_path)
    assert found == "no plan: too small" and not path.exists()


def test_planning_time_becomes_further_steps(tmp_path: Path) -> None:
    study = replace(STUDIES["search-cost"], budgets=("3bits",))
    exact, longer = tmp_path / "exact-3bits.json", tmp_path / "equal-compute-3bits.json"
    for path, measuring in ((exact, 5.0), (longer, 2.0)):  # both gather inputs for 2 s
        seconds = {"planning_seconds": {"measuring": measuring, "choosing": 1.1}}
        path.write_text(json.dumps({"precision": {}, "ranks": {}, **seconds}))
    spec = make_spec(SMOKE, "", "toy_sentences", {"plan": str(longer), "steps": 10})
    other = study_plans.longer_cells([spec, make_spec(SMOKE, "B-FP", "toy_sentences")], study)
    assert other == {("equal-compute-3bits", "toy_sentences"): str(exact.resolve())}
    longer_spec = study_plans.trained_longer(spec, other[cell_of(spec)], seconds_per_step=0.5)
    assert longer_spec.steps == 10 + 9, "6.1 − 2 s at half a second each, rounded up"
    exact.unlink()
    with pytest.raises(UserError, match="trains longer by the planning time of exact, which has no plan"):
        study_plans.longer_cells([spec], study)


def test_each_task_is_trained_longer_by_its_own_planning_time(tmp_path: Path) -> None:
    study = replace(STUDIES["search-cost"], budgets=("3bits",))
    specs = []
    for task in ("toy_sentences", "toy_articles"):
        for arm in ("exact", "equal-compute"):
            path = tmp_path / task / f"{arm}-3bits.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({"precision": {}, "ranks": {}}))
        specs.append(make_spec(SMOKE, "", task, {"plan": str(path), "steps": 10}))
    longer = study_plans.longer_cells(specs, study)
    assert {task: Path(path).parent.name for (_, task), path in longer.items()} == {
        "toy_sentences": "toy_sentences",
        "toy_articles": "toy_articles",
    }


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
