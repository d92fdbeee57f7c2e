"""``bitrank plan`` on tiny models: output, errors, and saved plans that a run follows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bitrank.cli.main import main
from bitrank.cli.plan_view import _kinds, proven
from bitrank.planning.budget import sizes_of
from bitrank.planning.costs import RANKS, Choices
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank_planner import Item, Plan, PlanError
from bitrank_quant import WeightMatrix

SMOKE = ("--profile", "smoke", "--ranks", "2,4,8")


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["plan", *SMOKE, "--json", *arguments]) == 0
    return dict(json.loads(capsys.readouterr().out))


def rejected(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["plan", *SMOKE, *arguments]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("task", ["toy_sentences", "toy_articles"])
def test_stored_bytes_of_the_run_equal_those_of_the_plan(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    data = planned(capsys, "--task", task, "--budget", "9bits", "--save", "mine.json")
    assert json.loads(Path("mine.json").read_text()) == data and data["init"] == "lq-lora"
    assert data["bytes"] <= data["budget"]
    page = Path("mine.html").read_text()
    assert page.count("<svg") == 3 and f"{data['bytes']:,} of {data['budget']:,} bytes" in page
    assert (
        main(["run", "--profile", "smoke", "--plan", "mine.json", "--task", task, "--max-steps", "10"]) == 0
    )
    (result,) = Path("runs/work").glob("*/result.json")
    figures = json.loads(result.read_text())
    assert round((figures["model/mib"] + figures["lora/mib"]) * 2**20) == data["bytes"]
    assert round(figures["model/mib"] * 2**20) == data["forecast"]["stored"]


def test_budgets_in_bytes_bits_or_by_config(capsys: Any) -> None:
    sizes = sizes_of(make_spec(find_profile("smoke"), "B-FP", "toy_sentences"))
    assert (
        planned(capsys, "--task", "toy_sentences", "--budget", "9bits")["budget"] == sizes.parameters * 9 // 8
    )
    assert planned(capsys, "--task", "toy_sentences", "--budget", "200kB")["budget"] == 200_000
    of_config = planned(capsys, "--task", "toy_sentences", "--budget", "=B-Q4")["budget"]
    assert of_config < planned(capsys, "--task", "toy_sentences", "--budget", "=B-FP")["budget"]


def test_pinned_matrices_keep_their_format_and_rank(capsys: Any) -> None:
    data = planned(
        capsys,
        "--task",
        "toy_articles",
        "--budget",
        "12bits",
        "--pin",
        "down_proj=int8:4",
        "--pin",
        "q_proj=:2",
    )
    assert {data["precision"][n] for n in data["precision"] if "down_proj" in n} == {"int8"}
    assert {r for n, r in data["ranks"].items() if "down_proj" in n} == {4}
    assert {r for n, r in data["ranks"].items() if "q_proj" in n} == {2}


def test_exact_plan_reports_its_proven_bound(capsys: Any) -> None:
    arguments = ("--task", "toy_sentences", "--budget", "12bits")
    for planner in ("exact", "rank-only"):
        data = planned(capsys, *arguments, "--planner", planner)
        assert 0 <= data["proven_gap"] <= 1e-6 and data["proven_lower_bound"] <= data["predicted_added_loss"]
    assert planned(capsys, *arguments, "--planner", "greedy")["proven_gap"] is None
    assert main(["plan", *SMOKE, *arguments]) == 0
    assert "optimal among plans with these options" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_info:
        main(["plan", *SMOKE, *arguments, "--time-limit", "0"])
    assert exit_info.value.code == 2 and "must be a finite number above 0" in capsys.readouterr().err


def test_a_search_that_reached_its_time_limit_reports_the_proven_gap() -> None:
    plan = Plan("exact", {}, {}, 10, 2.0, 0, (), bound=1.9)
    assert proven(plan, 60.0) == {
        "proven": "no plan with these options adds less than 1.9000 nats: at most 5 % to gain; "
        "the search stopped at its limit of 60 seconds"
    }
    assert proven(replace(plan, bound=None), 60.0) == {}


@pytest.mark.parametrize("planner", ["nsga2", "bayes", "random", "anneal"])
def test_searches_evaluate_plans_and_resume_from_their_journal(
    planner: str, capsys: Any, recwarn: pytest.WarningsRecorder
) -> None:
    arguments = (
        "--task",
        "toy_sentences",
        "--budget",
        "10bits",
        "--planner",
        planner,
        "--evaluations",
        "3",
        "--steps",
        "2",
    )
    first = planned(capsys, *arguments)
    assert first["planning_seconds"]["choosing"] > 0
    assert not [
        warning for warning in recwarn if warning.category is FutureWarning
    ]  # warnings of PEFT's use of transformers
    again = planned(capsys, *arguments)  # from its journal: the same plan, the same cost, nothing evaluated
    assert again["precision"] == first["precision"] and again["planning_seconds"] == first["planning_seconds"]


def test_a_search_with_other_settings_does_not_use_the_journal(capsys: Any) -> None:
    arguments = (
        "--task",
        "toy_sentences",
        "--budget",
        "10bits",
        "--planner",
        "random",
        "--evaluations",
        "3",
        "--steps",
        "2",
    )
    first = planned(capsys, *arguments)
    pinned = planned(capsys, *arguments, "--pin", "query=:2")
    assert {rank for name, rank in pinned["ranks"].items() if "query" in name} == {2}
    trained = planned(capsys, *arguments, "--set", "learning_rate=0.01")
    assert trained["planning_seconds"] != first["planning_seconds"]


def test_the_table_shows_formats_ranks_and_predictions(capsys: Any) -> None:
    capsys.readouterr()
    assert main(["plan", *SMOKE, "--task", "toy_articles", "--budget", "12bits", "--matrices"]) == 0
    out = capsys.readouterr().out
    for text in (
        "bits by block and matrix",
        "rank by block and matrix",
        "peak memory",
        "training time",
        "added loss",
        "mlp.down_proj",
    ):
        assert text in out


def test_bad_arguments_are_rejected(capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = ("--task", "toy_sentences")
    assert "is too small: the smallest plan takes" in rejected(capsys, *task, "--budget", "1kB")
    assert "expected a budget such as 20MB, 4.25bits or =B-Q4, got 'many'" in rejected(
        capsys, *task, "--budget", "many"
    )
    assert "unknown config 'B-Q9'" in rejected(capsys, *task, "--budget", "=B-Q9")
    assert "no matrix has 'downproj' in its name" in rejected(
        capsys, *task, "--budget", "12bits", "--pin", "downproj=int8"
    )
    assert "expected a pin like" in rejected(capsys, *task, "--budget", "12bits", "--pin", "downproj")
    assert "unknown planner 'exat'; nearest: exact" in rejected(
        capsys, *task, "--budget", "12bits", "--planner", "exat"
    )
    with pytest.raises(SystemExit) as exit_info:
        main(["plan", *SMOKE, *task, "--budget", "12bits", "--ranks", "two"])
    assert exit_info.value.code == 2
    assert "argument --ranks: expected whole numbers like 4,8,16" in capsys.readouterr().err
    assert "int9" in rejected(capsys, *task, "--budget", "12bits", "--formats", "int9")
    assert "give --task" in rejected(capsys, "--budget", "12bits")


def test_a_plan_for_another_model_is_rejected(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    planned(capsys, "--task", "toy_articles", "--budget", "12bits", "--save", "mine.json")
    assert main(["run", "--profile", "smoke", "--plan", "mine.json", "--task", "toy_sentences"]) == 2
    assert "this plan was made for another model" in capsys.readouterr().err
    assert not Path("runs").exists()  # rejected before a run is opened


def test_calibration_data_of_one_example_is_rejected(capsys: Any, tmp_path: Path) -> None:
    rows = "\n".join(f"a film {'good' if label else 'bad'} as can be,{label}" for label in (0, 1))
    (tmp_path / "few.csv").write_text(f"text,label\n{rows}\n")
    output = rejected(
        capsys, "--task", str(tmp_path / "few.csv"), "--budget", "12bits", "--model", "tiny-bert"
    )
    assert "few.csv has 2 rows; at least 10 are needed" in output


def test_a_model_that_does_not_fit_is_planned_from_its_config(capsys: Any, tmp_path: Path) -> None:
    """70 billion parameters: exact sizes, sensitivities by a prior, and no weight in memory."""
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    assert main(["plan", "--model", str(tmp_path / "config.json"), "--budget", "40GB", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert 39_990_000_000 < data["bytes"] <= 40_000_000_000 and data["sensitivities"] == "prior"
    assert len(data["ranks"]) == 560 and data["forecast"]["weights"] > 39_000_000_000


def test_rank_zero_everywhere_is_an_error_where_nothing_else_trains(capsys: Any) -> None:
    """A classifier has a new head to train, a language model has nothing."""
    arguments = ("--budget", "9bits", "--ranks", "0", "--planner", "exact")
    error = rejected(capsys, "--task", "toy_articles", *arguments)
    assert "the plan has rank 0 everywhere" in error and "--ranks 2,4,8" in error
    assert planned(capsys, "--task", "toy_sentences", *arguments)["ranks"] == {}


def test_budget_between_two_plans_gives_the_smaller_one(capsys: Any) -> None:
    """One format and one rank leave two plans; bytes between them are left over, bytes below both are an
    error with the least bytes that would do.
    """
    options = ("--task", "toy_articles", "--planner", "uniform", "--formats", "int4-g64,int8", "--ranks", "8")
    large = planned(capsys, *options, "--budget", "40bits")["bytes"]
    small = planned(capsys, *options, "--budget", str(large - 1))
    assert small["bytes"] < large - 1 == small["budget"] and set(small["precision"].values()) == {"int4-g64"}
    assert planned(capsys, *options, "--budget", str(small["bytes"]))["precision"] == small["precision"]
    output = rejected(capsys, *options, "--budget", str(small["bytes"] - 1))
    assert f"Give {small['bytes']:,} or more" in output


def test_default_ranks_give_every_block_matrix_an_adapter() -> None:
    assert min(RANKS) == 4 and Choices().offered_ranks == RANKS
    assert Choices(ranks=(0, 2)).offered_ranks == (0, 2)


def test_a_matrix_below_every_default_rank_gets_none_but_given_ranks_must_fit() -> None:
    gate = WeightMatrix("layers.0.gate", "ffn", 0, (2, 64))
    assert Choices().ranks_of(gate) == [0]
    with pytest.raises(PlanError, match=r"no rank of \(4, 8\) fits layers\.0\.gate of shape \(2, 64\)"):
        Choices(ranks=(4, 8)).ranks_of(gate)


def test_the_map_has_a_row_for_each_matrix_of_both_stacks_and_of_each_expert() -> None:
    names = ["encoder.layers.0.fc1", "decoder.layers.0.fc1"]
    items = [Item(name, (), "ffn", 0, (8, 8)) for name in names]
    assert _kinds(items) == {names[0]: "encoder.layers.fc1", names[1]: "decoder.layers.fc1"}
    experts = [Item(f"model.layers.2.mlp.experts.{n}.w1", (), "ffn", 2, (8, 8)) for n in (0, 1)]
    assert list(_kinds(experts).values()) == ["mlp.experts.0.w1", "mlp.experts.1.w1"]
    plain = [Item(f"model.layers.{n}.mlp.up_proj", (), "ffn", n, (8, 8)) for n in (0, 1)]
    assert set(_kinds(plain).values()) == {"mlp.up_proj"}
