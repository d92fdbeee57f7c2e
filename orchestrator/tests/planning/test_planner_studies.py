"""Studies of planners: their arms and settings, and a tiny study end to end."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bitrank.cli.main import main
from bitrank.cli.study import _study
from bitrank.planning.learning_rates import cell_of
from bitrank.planning.planner_studies import STUDIES, find_study, profile_of
from bitrank.planning.study_plans import _longest_first, check_arms, planning_costs
from bitrank.spec.configs import find_config
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.rule_interface import AttachOptions
from bitrank.spec.run_spec import RunSpec
from bitrank.spec.task_kinds import TASK_KINDS
from bitrank.spec.tiny_models import TINY
from bitrank_adapters import AdapterScale
from bitrank_quant import block_matrices

SMOKE = ("--quick", "--profile", "smoke", "--tasks", "toy_sentences", "--budgets", "9bits")
ARGUMENTS = ("study", "three-bits", *SMOKE, "--arms", "exact,adalora")


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_of_a_study_is_a_planner(name: str) -> None:
    study = find_study(name, quick=False)
    check_arms(study.arms)
    assert study.reference in study.arms and len(set(study.arms)) == len(study.arms)
    quick = find_study(name, quick=True)
    assert quick.seeds == (0,) and len(quick.budgets) == 1 and quick.evaluations < study.evaluations
    assert set(quick.configs) <= set(study.configs) and quick.arms == study.arms


def test_quick_study_only_shortens_runs() -> None:
    laptop, smoke, paper = (
        profile_of("allocators", find_profile(name), quick=True) for name in ("laptop", "smoke", "paper")
    )
    assert laptop.name == "allocators-quick" and laptop.by_kind["classification"]["steps"] == 100
    articles = laptop.by_kind["language-modelling"]
    assert [articles[key] for key in ("steps", "eval_every")] == [10, 10]
    embedded = make_spec(laptop, "B-FP", "wiki_articles")
    assert (embedded.steps, embedded.test_windows, embedded.validation_windows) == (10, 1, 1)
    assert smoke.by_kind["classification"]["steps"] == 20, "20 steps are already fewer"
    assert make_spec(paper, "B-FP", "wikitext2").test_windows is None, "whole texts are not cut into windows"
    spec = make_spec(paper, "B-FP", "movie_sentences")
    assert (spec.steps, spec.epochs) == (100, None), "epochs are replaced by steps"
    whole = profile_of("allocators", find_profile("laptop"), quick=False)
    assert whole.by_kind == find_profile("laptop").by_kind and whole.name == "allocators"


def test_the_experiment_of_a_study_has_the_name_of_any_profile_but_laptop() -> None:
    names = [
        profile_of("systems", find_profile(profile), quick).name
        for profile in ("laptop", "smoke")
        for quick in (False, True)
    ]
    assert names == ["systems", "systems-quick", "systems-smoke", "systems-smoke-quick"]


@pytest.mark.parametrize("config", ["B-Ada", "DoRA-Dynamic-Q4", "ARD-LoRA-Q4"])
def test_quick_runs_have_the_steps_that_pruned_ranks_need(config: str) -> None:
    """Every rule that prunes ranks can be attached for so many steps."""
    model, rule = TINY["tiny-llama"](), find_config(config).rank
    options = AttachOptions(
        AdapterScale(), [], seed=0, total_steps=min(k.quick_steps for k in TASK_KINDS.values())
    )
    ranks = rule.assign_ranks(block_matrices(model))
    attached = rule.attach(model, ranks, options)
    assert attached.hook.ranks() == {name: rank for name, rank in ranks.items() if rank}


def test_longest_searches_are_planned_first() -> None:
    request = [
        (arm, "3.25bits", task)
        for task in ("movie_sentences", "wiki_articles")
        for arm in ("exact", "bayes", "best-search")
    ]
    ordered = _longest_first(
        request, {"movie_sentences": "classification", "wiki_articles": "language-modelling"}
    )
    assert sorted(ordered) == sorted(request)
    assert [(arm, task) for arm, _, task in ordered[:4]] == [
        (arm, task) for task in ("wiki_articles", "movie_sentences") for arm in ("bayes", "best-search")
    ]


def test_unknown_study_exits_with_2_and_the_nearest_name(capsys: Any) -> None:
    assert main(["study", "allocator"]) == 2
    assert "unknown study 'allocator'; nearest: allocators" in capsys.readouterr().err


def test_tiny_study_plans_trains_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*ARGUMENTS]) == 0
    printed = capsys.readouterr().out
    folder = Path("results/three-bits-smoke-quick")
    report = (folder / "report.md").read_text()
    assert (
        report in printed
        and "exact-9bits" in report
        and "adalora-9bits" in report
        and "At equal bytes, after Holm, exact-9bits" in report
    )
    plans = {
        path.stem: json.loads(path.read_text()) for path in (folder / "plans/toy_sentences").glob("*.json")
    }
    assert (
        plans["exact-9bits"]["init"] == "lq-lora"
        and plans["exact-9bits"]["bytes"] <= plans["exact-9bits"]["budget"]
    )
    rank = plans["adalora-9bits"]["adaptive"]["target_r"]
    assert (
        set(plans["adalora-9bits"]["ranks"].values()) == {rank}
        and plans["adalora-9bits"]["adaptive"]["shrink"]
    )
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("plans/*/*.json")}
    assert main([*ARGUMENTS]) == 0  # nothing is planned or trained again
    assert written == {path: path.stat().st_mtime_ns for path in folder.rglob("plans/*/*.json")}
    repeated = capsys.readouterr().out
    assert "2 of 2 runs are complete" in repeated and "toy_sentences: 2 runs of about" in repeated


@pytest.mark.slow
def test_study_with_a_grid_trains_each_arm_at_its_best_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["study", "search-cost", *SMOKE, "--arms", "exact,equal-compute", "--rates", "1,30"]
    assert main([*arguments]) == 0
    folder = Path("results/search-cost-smoke-quick")
    rows = {row["config"]: row for row in json.loads((folder / "rates.json").read_text())}
    costs = {row["config"]: row for row in json.loads((folder / "planning.json").read_text())["plans"]}
    assert rows.keys() == costs.keys() == {"exact-9bits", "equal-compute-9bits"}
    for name, row in rows.items():
        losses = {float(rate): loss for rate, loss in row["losses"].items() if loss is not None}
        assert len(row["losses"]) == 2 and row["rate"] == min(losses, key=losses.__getitem__)
        assert costs[name]["learning_rate"] == row["rate"]
    planning = costs["exact-9bits"]["measuring_s"] + costs["exact-9bits"]["choosing_s"]
    planning -= costs["equal-compute-9bits"]["measuring_s"]  # both gather inputs for the quantizer
    pace = rows["equal-compute-9bits"]["seconds_per_step"]
    assert costs["equal-compute-9bits"]["steps"] == costs["exact-9bits"]["steps"] + math.ceil(planning / pace)
    capsys.readouterr()
    assert main([*arguments]) == 0  # the same rates and lengths: nothing is trained again
    assert "2 of 2 runs are complete" in capsys.readouterr().out
    assert {
        row["config"]: row for row in json.loads((folder / "planning.json").read_text())["plans"]
    } == costs


@pytest.mark.slow
def test_quick_study_of_systems_walks_to_its_rates_and_tests_only_reported_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["study", "systems", *SMOKE, "--arms", "B-FP,uniform"]) == 0
    folder = Path("results/systems-smoke-quick")
    for row in json.loads((folder / "rates.json").read_text()):
        low, middle, high = sorted(find_study("systems", quick=True).rates)
        tried = sorted(float(rate) for rate in row["losses"])
        assert len(tried) == (2 if row["rate"] == max(tried) else 3)
        assert [rate / tried[-1] for rate in tried] == pytest.approx(
            [factor / high for factor in (low, middle, high)[-len(tried) :]], rel=1e-2
        )
    reported = json.loads((folder / "all_results.json").read_text())
    chosen_by = json.loads((folder / "rates/all_results.json").read_text())
    assert all("eval/acc" in run["results"] for run in reported) and len(reported) == 2
    assert not any("eval/acc" in run["results"] for run in chosen_by) and len(chosen_by) >= 4


@pytest.mark.parametrize(("name", "quick"), [("systems", True), ("systems", False), ("allocators", False)])
@pytest.mark.parametrize(("rates", "walks"), [(None, True), ([0.3, 1.0, 3.0], False)])
def test_rates_that_are_asked_for_are_all_tried(
    rates: list[float] | None, walks: bool, name: str, quick: bool
) -> None:
    keys = ("budgets", "arms", "seeds", "evaluations")
    arguments = Namespace(name=name, quick=quick, rates=rates, **dict.fromkeys(keys))
    assert _study(arguments).walks == walks


def test_costs_of_a_config_at_its_own_bytes_are_those_of_its_learning_rate() -> None:
    spec = RunSpec("B-FP", "toy_sentences", "tiny", steps=10, learning_rate=1e-3)
    row = {"config": "B-FP", "task": "toy_sentences", "rates_s": 24.0, "learning_rate": 1e-3, "steps": 10}
    assert planning_costs([spec, replace(spec, seed=1)], {cell_of(spec): 24.0}) == [row]


def test_forecast_ends_before_anything_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["study", "allocators", *SMOKE, "--rates", "0.1,1,10", "--jobs", "2", "--forecast"]) == 0
    printed = capsys.readouterr().out
    # (9 arms at one budget and 3 configs) × one seed, and × three learning rates
    assert "toy_sentences: 12 runs of about" in printed and "up to 36 of about" in printed
    assert "with 2 at a time" in printed
    assert not Path("results").exists() and not Path("runs").exists()


def test_unknown_arm_exits_with_2_and_the_nearest_name(capsys: Any) -> None:
    assert main(["study", "allocators", *SMOKE, "--arms", "exact,equal-computer"]) == 2
    assert "unknown arm 'equal-computer'; nearest: equal-compute" in capsys.readouterr().err


def test_named_configs_in_16_bits_are_trained_at_their_own_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        main(["study", "three-bits", *SMOKE, "--arms", "exact,B-Q4,B-FP", "--jobs", "1", "--forecast"]) == 0
    )
    shown = capsys.readouterr().out
    assert "toy_sentences: 3 runs of about" in shown and "do not fit" not in shown
