"""Requests of planned arms: the parts of a spec that a plan depends on, and invalid requests."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from bitrank.errors import UserError
from bitrank.spec.configs import CONFIGS, Config, PlannedArm, find_arm, find_config
from bitrank.spec.inputs import check_plan
from bitrank.spec.make_spec import make_spec
from bitrank.spec.plan_request import PLAN, cached_plan, plan_place
from bitrank.spec.profiles import PROFILES
from bitrank.spec.rules import FixedRank
from bitrank.spec.run_spec import RunSpec, read_spec, write_spec

SMOKE = PROFILES["smoke"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path))
    return tmp_path


def spec_of(config: str = "Plan-Q4", **given: object) -> RunSpec:
    return make_spec(SMOKE, config, "toy_sentences", given)


def test_every_planned_arm_is_plain_data() -> None:
    planned = [arm for arm in CONFIGS.values() if isinstance(arm, PlannedArm)]
    assert planned
    for arm in planned:
        assert json.loads(json.dumps(arm.as_data())) == arm.as_data()


def test_a_planned_spec_survives_its_file(tmp_path: Path) -> None:
    spec = spec_of()
    write_spec(spec, tmp_path / "spec.json")
    assert read_spec(tmp_path / "spec.json").spec_id == spec.spec_id
    check_plan(read_spec(tmp_path / "spec.json"))


def test_runs_that_differ_in_seed_or_training_share_a_plan() -> None:
    place = plan_place(spec_of())
    for change in ({"seed": 1}, {"learning_rate": 1e-5}, {"steps": 3}, {"memory_limit": 2**30}):
        assert plan_place(spec_of(**change)) == place, change


@pytest.mark.parametrize(
    "change",
    [
        {"model": "tiny-gpt2"},
        {"max_length": 16},
        {"init": "default"},
        {"quantizer": "rtn"},
        {"dtype": "fp32"},
    ],
)
def test_a_plan_depends_on_model_text_start_and_dtype(change: dict[str, object]) -> None:
    assert plan_place(spec_of(**change)) != plan_place(spec_of())


@pytest.mark.parametrize(
    "change", [{"budget": "3.5bits"}, {"planner": "greedy"}, {"ranks": (2, 4)}, {"seconds": 5.0}]
)
def test_a_changed_request_changes_plan_and_spec(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    before = spec_of()
    monkeypatch.setitem(CONFIGS, "Plan-Q4", replace(CONFIGS["Plan-Q4"], **change))
    after = spec_of()
    assert after.spec_id != before.spec_id and plan_place(after) != plan_place(before)
    with pytest.raises(UserError, match="describes another arm now"):
        check_plan(before)


def test_a_changed_config_changes_the_plans_in_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = spec_of()
    monkeypatch.setitem(CONFIGS, "B-Q4", replace(CONFIGS["B-Q4"], rank=FixedRank(9)))
    assert spec_of().spec_id != before.spec_id and plan_place(spec_of()) != plan_place(before)


def test_a_search_trains_so_its_plan_depends_on_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIGS, "Search", PlannedArm("random", "=B-Q4"))
    assert plan_place(spec_of("Search", learning_rate=1e-5)) != plan_place(spec_of("Search"))
    assert plan_place(spec_of("Search", seed=1)) == plan_place(spec_of("Search"))


def test_a_cached_plan_is_found_without_planning() -> None:
    spec = spec_of()
    assert cached_plan(spec) is None
    place = plan_place(spec)
    place.mkdir(parents=True)
    (place / PLAN).write_text(json.dumps({"precision": {}, "ranks": {}, "planner": "exact"}))
    assert cached_plan(replace(spec, seed=5))["planner"] == "exact"


def test_rule_arms_have_no_request_and_planned_arms_no_rules() -> None:
    assert spec_of("B-Q4").plan_request is None and spec_of().plan_request["budget"] == "=B-Q4"
    assert isinstance(find_arm("B-Q4"), Config) and isinstance(find_arm("Plan-Q4"), PlannedArm)
    with pytest.raises(UserError, match="planned for each model"):
        find_config("Plan-Q4")


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (PlannedArm("exact", "=B-Q5"), "unknown config 'B-Q5'"),
        (PlannedArm("exact", "=Plan-Q4"), "planned for each model"),
    ],
)
def test_a_budget_must_be_that_of_a_config_with_rules(
    monkeypatch: pytest.MonkeyPatch, arm: PlannedArm, message: str
) -> None:
    monkeypatch.setitem(CONFIGS, "Bad", arm)
    with pytest.raises(UserError, match=message):
        spec_of("Bad")


def test_ranks_of_a_planned_arm_cannot_be_set() -> None:
    with pytest.raises(UserError, match="the planner chooses the ranks of Plan-Q4"):
        spec_of(rank=4)


def test_a_planned_arm_needs_a_start_that_planners_predict() -> None:
    with pytest.raises(UserError, match="expected init=default or lq-lora, got loftq"):
        spec_of(init="loftq")
    assert asdict(spec_of())["init"] == "lq-lora" and asdict(spec_of(init="default"))["init"] == "default"
