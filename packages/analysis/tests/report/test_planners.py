"""Report on planners at equal bytes: the pairs that are compared, the families of tests, the sentences."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bitrank_analysis import load_study, open_store
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.evidence import gather
from bitrank_analysis.figures import FIGURES
from bitrank_analysis.figures.difference_bytes import difference_bytes
from bitrank_analysis.report.planners import arms_table, planner_sentences, planners_report
from bitrank_analysis.statistics.compare import compare

BUDGETS = {
    "exact-4bits": 100,
    "greedy-4bits": 100,
    "random-4bits": 100,
    "exact-2bits": 50,
    "greedy-2bits": 50,
}
ACCURACY = {
    "exact-4bits": 0.9,
    "greedy-4bits": 0.7,
    "random-4bits": 0.88,
    "exact-2bits": 0.6,
    "greedy-2bits": 0.58,
    "B-FP": 0.97,
    "B-Q4": 0.7,
}
LEFT_OUT = [{"arm": "B-Ada", "budget": "2bits", "task": "movies", "reason": "does not fit into 50 bytes"}]


REFERENCES = ["exact-4bits", "exact-2bits"]


def studied(plans: list[dict[str, Any]]) -> dict[str, Any]:
    """What a study records about its arms."""
    return {"references": REFERENCES, "plans": plans, "left_out": LEFT_OUT}


@pytest.fixture
def store(maker: Any, tmp_path: Path) -> Path:
    for number, (config, accuracy) in enumerate(ACCURACY.items()):
        right = np.random.default_rng(number).random(400) < accuracy
        mib = BUDGETS.get(config, 300)
        metrics = {
            "eval/acc": float(right.mean()),
            "zero/acc": 0.5,
            "model/mib": mib - 1.0,
            "lora/mib": 1.0,
            "time/total_s": 60.0,
        }
        maker.classifier(config, right.tolist(), metrics=metrics)
    costs = [
        {
            "config": config,
            "task": "movies",
            "planned_bytes": budget,
            "budget": budget,
            "measuring_s": 50.0,
            "choosing_s": 2.0,
            "rates_s": 5.0,
            "predicted_nats": 0.1,
        }
        for config, budget in BUDGETS.items()
    ]
    costs += [{"config": config, "task": "movies"} for config in ACCURACY if config not in BUDGETS]
    (tmp_path / "costs.json").write_text(json.dumps(studied(costs)))
    return tmp_path


def planning_costs(store: Path) -> pd.DataFrame:
    return pd.DataFrame(json.loads((store / "costs.json").read_text())["plans"])


def test_planned_arms_are_compared_within_their_budget_and_others_with_every_reference(store: Path) -> None:
    planners_report(str(store), "bitrank-test", [store / "costs.json"], store)
    study = load_study(open_store(str(store)), "bitrank-test")
    frame = arms_table(study, "movies", REFERENCES, planning_costs(store))
    compared = {
        reference: set(frame.loc[frame["baseline"] == reference, "config"]) for reference in REFERENCES
    }
    assert compared == {
        "exact-4bits": {"greedy-4bits", "random-4bits", "B-FP", "B-Q4"},
        "exact-2bits": {"greedy-2bits", "B-FP", "B-Q4"},
    }
    assert set(frame.loc[frame["baseline"].isna(), "config"]) == set(REFERENCES)


def test_each_family_of_tests_is_corrected_separately(store: Path) -> None:
    """A family with one arm has one test, so its p is not multiplied."""
    study = load_study(open_store(str(store)), "bitrank-test")
    frame = arms_table(study, "movies", REFERENCES, planning_costs(store))
    alone = compare(study, "movies", ["exact-2bits"]).set_index("candidate")
    found = frame[frame["config"] == "greedy-2bits"].iloc[0]
    assert found["p_holm"] == pytest.approx(float(alone.loc["greedy-2bits", "p"]))
    assert found["p_holm"] <= float(alone.loc["greedy-2bits", "p_holm"])


def test_sentences_separate_arms_with_and_without_a_budget(store: Path) -> None:
    text = planners_report(str(store), "bitrank-test", [store / "costs.json"], store)
    one_seed = "on the examples of one seed"
    assert (
        f"after Holm, exact-4bits differs from 1 of 2 {one_seed}, ahead of 1 and behind 0; "
        "for 1 no difference is shown." in text
    )
    assert (
        "Against the arms without a byte budget (3.0 to 3.0 times its bytes) it differs from 2 of 2 "
        f"{one_seed}, ahead of 1 and behind 1 (B-FP); for 0 no difference is shown." in text
    )
    assert "At equal bytes, after Holm, exact-2bits beats 0 of 1, is beaten by 0" in text
    sentences, claims = text.split("### What was claimed")
    assert "better" not in sentences and "worse" not in sentences
    assert "- B-Ada at 2bits: does not fit into 50 bytes" in text
    assert "7 of 7 arms end ahead of their own untrained model" in text
    assert "| ARD-LoRA keeps 99.3 % of full quality (here: of LoRA in 16 bits) |" in claims
    assert "not tested here: no finished run of ARD-LoRA-Q4" in claims
    assert (store / "movies.csv").is_file() and (store / "report.md").read_text() == text


def test_sentence_on_arms_with_one_seed_and_several_counts_every_verdict() -> None:
    verdicts = ["differs on these examples (one seed)"] * 2 + ["worse", "worse", "better", "unresolved"]
    verdicts += ["alike on these examples (one seed)", "as good as"]
    rows = {
        "config": ["exact", *(f"arm {number}" for number in range(8))],
        "baseline": [None, *["exact"] * 8],
        "budget": [1.0] * 9,
        "stored_bytes": [1.0] * 9,
        "metric": [None, *["acc"] * 8],
        "difference": [None, 0.1, -0.1, -0.2, -0.2, 0.2, 0.0, 0.0, 0.0],
        "verdict": [None, *verdicts],
    }
    assert planner_sentences(pd.DataFrame(rows), ["exact"]) == [
        "At equal bytes, after Holm, exact differs from 2 of 8 on the examples of one seed, ahead of 1 and "
        "behind 1 (arm 0); over several seeds it beats 2 and is beaten by 1 (arm 4); for 3 no difference is "
        "shown."
    ]


def test_figure_draws_each_arm_at_its_budget_with_its_interval(store: Path) -> None:
    text = planners_report(str(store), "bitrank-test", [store / "costs.json"], store)
    assert "![Difference against bytes](difference-bytes-movies.svg)" in text
    assert (store / "difference-bytes-movies.svg").exists()
    study = load_study(open_store(str(store)), "bitrank-test")
    costs = planning_costs(store).assign(learning_rate=0.001)
    frame = arms_table(study, "movies", REFERENCES, costs)
    drawn = difference_bytes(frame, "movies").chart.to_dict()["datasets"]
    (rows,) = [data for data in drawn.values() if "arm" in data[0]]
    by_arm = {(row["arm"], row["mib"] > 60 / 2**20): row for row in rows}
    assert {arm for arm, _ in by_arm} == {"greedy", "random"} and len(rows) == 3
    config = frame[(frame["config"] == "greedy-4bits")].iloc[0]
    row = by_arm["greedy", True]
    assert [row[side] for side in ("difference", "low", "high")] == pytest.approx(
        [100 * config[side] for side in ("difference", "low", "high")]
    )
    with pytest.raises(AnalysisError, match="an arm of movies beside the reference"):
        difference_bytes(frame[frame["config"] == "exact-4bits"], "movies")


def test_figure_of_one_budget_has_a_row_for_each_arm_from_best_to_worst(store: Path) -> None:
    study = load_study(open_store(str(store)), "bitrank-test")
    frame = arms_table(study, "movies", REFERENCES[:1], planning_costs(store))
    figure = difference_bytes(frame, "movies")
    drawn = figure.chart.to_dict()
    (rows,) = [data for data in drawn["datasets"].values() if "low" in data[0]]
    assert [row["arm"] for row in rows] == ["random-4bits", "greedy-4bits"]
    assert "MiB" not in json.dumps(drawn) and figure.note.endswith("right of the line is better.")
    others = pd.concat([frame] * 9).assign(config=[f"a{n}-4bits" for n in range(9 * len(frame))])
    far = frame[frame["config"] == "greedy-4bits"].assign(difference=-0.9, low=-0.95, high=-0.85)
    figure = difference_bytes(pd.concat([others, far]), "movies")
    labels = [data for data in figure.chart.to_dict()["datasets"].values() if "text" in data[0]]
    assert [[row["arm"], row["text"]] for (row,) in labels] == [["greedy-4bits", "−90"]]
    assert "a number at the edge is a difference outside of the axis" in figure.note


def test_arms_and_references_may_have_hyphens(store: Path) -> None:
    study = load_study(open_store(str(store)), "bitrank-test")
    costs = planning_costs(store)
    frame = arms_table(study, "movies", REFERENCES, costs)
    names = {"exact-": "Plan-Q4-", "greedy-": "B-Q4-", "random-": "QA-LoRA-Q4-"}
    for column in ("config", "baseline"):
        frame[column] = frame[column].replace(names, regex=True)
    drawn = difference_bytes(frame, "movies").chart.to_dict()["datasets"]
    (rows,) = [data for data in drawn.values() if "arm" in data[0]]
    assert {row["arm"] for row in rows} == {"B-Q4", "QA-LoRA-Q4"}


def test_a_reference_may_be_the_beginning_of_the_others(store: Path) -> None:
    study = load_study(open_store(str(store)), "bitrank-test")
    frame = arms_table(study, "movies", REFERENCES, planning_costs(store))
    for column in ("config", "baseline"):
        frame[column] = frame[column].replace("-4bits", "", regex=True)
    drawn = difference_bytes(frame, "movies").chart.to_dict()["datasets"]
    (rows,) = [data for data in drawn.values() if "arm" in data[0]]
    assert [row["arm"] for row in rows].count("greedy") == 2 and {row["arm"] for row in rows} == {
        "greedy",
        "random",
    }


def test_perplexities_are_averaged_as_their_logarithms(maker: Any, tmp_path: Path) -> None:
    """Perplexities of 4 and 16 have the mean 8, and 2 and 32 before training too."""
    for seed, (ends, begins) in enumerate([(4.0, 2.0), (16.0, 32.0)]):
        rows = {"id": [f"doc-{n}" for n in range(8)], "tokens": [10] * 8, "loss": [10 * math.log(ends)] * 8}
        metrics = {"eval/ppl": ends, "zero/ppl": begins, "model/mib": 10.0, "lora/mib": 1.0}
        maker.run("exact", task="wiki", seed=seed, metrics=metrics, predictions={**rows, "right": [0] * 8})
    study = load_study(open_store(str(tmp_path)))
    seconds = {"measuring_s": 0.0, "choosing_s": 0.0, "rates_s": 0.0}
    costs = pd.DataFrame([{"config": "exact", "task": "wiki", "budget": 2.0**20, **seconds}])
    row = arms_table(study, "wiki", [], costs).iloc[0]
    assert (row["quality"], row["zero"]) == (pytest.approx(8.0), pytest.approx(8.0))
    drawn = FIGURES["recovery"](gather(study, "wiki"))
    assert "from 8.00 to 8.00 perplexity" in drawn.title


def test_costs_count_planning_rates_and_training_and_bytes_left_of_the_budget(store: Path) -> None:
    study = load_study(open_store(str(store)), "bitrank-test")
    costs = planning_costs(store).assign(budget=lambda rows: 2**20 * rows["budget"], learning_rate=0.001)
    frame = arms_table(study, "movies", REFERENCES, costs).set_index("config")
    planned = frame.loc["greedy-4bits"]
    assert planned["total_s"] == 50 + 2 + 5 + 60 and planned["left_bytes"] == 0
    assert frame.loc["B-FP", "total_s"].tolist() == [60, 60] and frame.loc["B-FP", "left_bytes"].isna().all()


def test_arms_at_their_own_bytes_have_a_rate_and_its_cost_but_no_budget(store: Path) -> None:
    study = load_study(open_store(str(store)), "bitrank-test")
    chosen = pd.DataFrame([{"config": "B-FP", "task": "movies", "rates_s": 7.0, "learning_rate": 0.01}])
    costs = pd.concat([planning_costs(store).query("config != 'B-FP'"), chosen])
    row = arms_table(study, "movies", REFERENCES, costs).set_index("config").loc["B-FP"].iloc[0]
    assert (row["learning_rate"], row["total_s"]) == (0.01, 7 + 60) and pd.isna(row["budget"])


def test_arms_above_their_budget_are_named_with_their_share(store: Path) -> None:
    costs = json.loads((store / "costs.json").read_text())
    for plan in costs["plans"]:
        plan["budget"] = plan["budget"] * 2**20 if "budget" in plan else None
    (store / "within.json").write_text(json.dumps(costs))
    text = planners_report(str(store), "bitrank-test", [store / "within.json"], store)
    assert "Above the budget" not in text
    next(plan for plan in costs["plans"] if plan["config"] == "greedy-4bits")["budget"] = 80 * 2**20
    (store / "above.json").write_text(json.dumps(costs))
    text = planners_report(str(store), "bitrank-test", [store / "above.json"], store)
    assert "Above the budget at the end: greedy-4bits by 20,971,520 bytes (25.0 %)." in text


def test_runs_at_a_rate_that_is_no_longer_chosen_are_left_out(maker: Any, store: Path) -> None:
    """A study that is repeated with other rates has runs of both; the newer need not be the better ones."""
    metrics = {"zero/acc": 0.5, "model/mib": 99.0, "lora/mib": 1.0, "time/total_s": 60.0}
    for rate, accuracy in (("0.001", 0.3), ("0.003", 0.4)):
        right = [number < 400 * accuracy for number in range(400)]
        figures = {**metrics, "eval/acc": accuracy}
        maker.classifier("late-4bits", right, metrics=figures, params={"learning_rate": rate})
    costs = json.loads((store / "costs.json").read_text())
    for rate, accuracy in ((0.001, 0.3), (0.003, 0.4)):
        late = {**costs["plans"][0], "config": "late-4bits", "learning_rate": rate}
        (store / "late.json").write_text(json.dumps({**costs, "plans": [*costs["plans"], late]}))
        text = planners_report(str(store), "bitrank-test", [store / "late.json"], store)
        (row,) = [line for line in text.splitlines() if line.startswith("| late-4bits | exact-4bits |")]
        assert f"| {accuracy} |" in row and f"| {rate} |" in row
        assert "other settings" not in text, "each arm has a learning rate of its own"


def test_arms_that_the_study_did_not_plan_are_left_out_and_named(maker: Any, store: Path) -> None:
    """Such as runs of another study in the same experiment, whose budgets are not known."""
    metrics = {"eval/acc": 0.5, "zero/acc": 0.5, "model/mib": 99.0, "lora/mib": 1.0, "time/total_s": 60.0}
    maker.classifier("other-7bits", [True] * 200 + [False] * 200, metrics=metrics)
    text = planners_report(str(store), "bitrank-test", [store / "costs.json"], store)
    assert "Runs left out because the study did not plan their arms: other-7bits on movies." in text
    assert "| other-7bits |" not in text
    (store / "none.json").write_text(json.dumps(studied([{"config": "absent-4bits", "task": "movies"}])))
    with pytest.raises(AnalysisError, match="bitrank-test has no finished run of an arm of the study"):
        planners_report(str(store), "bitrank-test", [store / "none.json"], store)


def test_arms_without_their_reference_are_not_compared(store: Path) -> None:
    costs = json.loads((store / "costs.json").read_text())
    costs["plans"] = [plan for plan in costs["plans"] if plan["config"] != "exact-2bits"]
    (store / "without.json").write_text(json.dumps(costs))
    text = planners_report(str(store), "bitrank-test", [store / "without.json"], store)
    (row,) = [line for line in text.splitlines() if line.startswith("| greedy-2bits |")]
    assert "| not compared |" in row and "| exact-4bits | – |" in text and "| reference |" in text


def test_the_parts_of_a_study_give_the_report_of_the_whole(maker: Any, store: Path, tmp_path: Path) -> None:
    plans = json.loads((store / "costs.json").read_text())["plans"]
    parts = []
    for bits in ("4bits", "2bits"):
        part = studied([plan for plan in plans if plan["config"].endswith((bits, "B-FP", "B-Q4"))])
        part["references"] = [name for name in REFERENCES if name.endswith(bits)]
        parts.append(store / f"{bits}.json")
        parts[-1].write_text(json.dumps(part))
    whole = planners_report(str(store), "bitrank-test", [store / "costs.json"], tmp_path / "whole")
    assert planners_report(str(store), None, parts, tmp_path / "joined") == whole
    assert (tmp_path / "joined/movies.csv").read_text() == (tmp_path / "whole/movies.csv").read_text()


def test_an_arm_with_a_plan_in_one_part_is_not_among_those_without(store: Path) -> None:
    row = {"arm": "exact", "budget": "4bits", "task": "movies", "reason": "no plan"}
    (store / "first.json").write_text(json.dumps({**studied([]), "left_out": [row]}))
    text = planners_report(str(store), None, [store / "first.json", store / "costs.json"], store)
    assert "exact at 4bits" not in text


def test_parts_that_train_an_arm_at_different_rates_are_refused(store: Path) -> None:
    row = {"config": "exact-4bits", "task": "movies", "learning_rate": 0.001}
    for name, rate in (("first.json", 0.001), ("second.json", 0.003)):
        (store / name).write_text(json.dumps(studied([{**row, "learning_rate": rate}])))
    parts = [store / "first.json", store / "second.json"]
    with pytest.raises(
        AnalysisError, match=r"second\.json: exact-4bits on movies .* 0\.003, and with 0\.001"
    ):
        planners_report(str(store), None, parts, store)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"plans": []}', '{"references": 1, "plans": [], "left_out": []}']
)
def test_other_files_than_those_of_a_study_are_refused(store: Path, text: str) -> None:
    (store / "other.json").write_text(text)
    with pytest.raises(AnalysisError, match=r"other\.json.* planning\.json of"):
        planners_report(str(store), None, [store / "other.json"], store)


def test_runs_of_the_study_that_failed_are_listed_and_the_seeds_of_each_arm_shown(
    store: Path, maker: Any
) -> None:
    maker.run("greedy-4bits", seed=1, status="FAILED", tags={"finding": "loss is NaN"})
    maker.run("not-planned", seed=1, status="FAILED")
    text = planners_report(str(store), "bitrank-test", [store / "costs.json"], store)
    (listed,) = [part for part in text.split("\n\n") if part.startswith("- greedy-4bits")]
    assert listed == "- greedy-4bits, seed 1: diverged: loss is NaN"
    assert "Without a result:" in text and "absent" not in text
    (row,) = [line for line in text.splitlines() if line.startswith("| greedy-4bits")]
    assert row.split("|")[3].strip() == "1"


def test_one_run_without_predictions_does_not_stop_the_report(store: Path, maker: Any) -> None:
    run_id = maker.run("greedy-4bits", seed=1, metrics={"eval/acc": 0.5})
    text = planners_report(str(store), "bitrank-test", [store / "costs.json"], store)
    assert f"- greedy-4bits, seed 1: finished, but run {run_id} has no predictions.parquet" in text


def test_axis_of_one_budget_holds_differences_without_intervals(store: Path) -> None:
    study = load_study(open_store(str(store)), "bitrank-test")
    frame = arms_table(study, "movies", REFERENCES[:1], planning_costs(store))
    drawn = difference_bytes(frame.assign(low=math.nan, high=math.nan), "movies").chart.to_dict()
    scales = [layer["encoding"]["x"].get("scale") for layer in drawn["layer"]]
    (domain,) = [scale["domain"] for scale in scales if scale]
    compared = frame.loc[frame["budget"].notna(), "difference"].dropna()
    assert domain == pytest.approx([min(0.0, 100 * compared.min()), max(0.0, 100 * compared.max())])


def test_a_task_without_a_finished_run_is_in_the_report(store: Path) -> None:
    records = json.loads((store / "costs.json").read_text())
    records["left_out"].append({"arm": "exact", "budget": "2bits", "task": "songs", "reason": "diverged"})
    (store / "costs.json").write_text(json.dumps(records))
    text = planners_report(str(store), "bitrank-test", [store / "costs.json"], store)
    assert "## songs\n\nNo run has finished.\n\nNot run:\n\n- exact at 2bits: diverged" in text
