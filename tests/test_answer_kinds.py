"""Question answering and both kinds of probing on tiny models: runs learn, are compared and planned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from bitrank.errors import UserError
from bitrank.models.load import open_model
from bitrank.planning.costs import Choices
from bitrank.planning.make_plan import PlanRequest, make_plan
from bitrank.run.record import Record
from bitrank.run.train_run import execute
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.spec.run_spec import write_spec
from bitrank.tracking.mlflow_tracker import Tracker
from bitrank.tracking.store import open_store
from bitrank_analysis import Study, load_study
from bitrank_analysis import open_store as open_for_analysis
from bitrank_analysis.metrics import METRICS
from bitrank_analysis.report import collect
from bitrank_analysis.report.plain import plain
from bitrank_analysis.statistics import compare
from bitrank_analysis.statistics.examples import load_arms
from bitrank_data import MASKED_PROBING
from bitrank_trainer import ALONE

SMOKE = PROFILES["smoke"]
METRIC = {"toy_questions": "token_f1", "toy_facts": "p_at_1"}
MASKED = {"kind": MASKED_PROBING}
SECOND = {"toy_questions": ("exact_match", "exact_match"), "toy_facts": ("mrr", "reciprocal_rank")}
TESTS = {"toy_questions": "normal over examples", "toy_facts": "McNemar, exact"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two arms of both tasks."""
    tmp_path = tmp_path_factory.mktemp("answers")
    folder = str(tmp_path / "runs")
    tracker = Tracker(open_store(folder), folder, SMOKE.name)
    for task in METRIC:
        for config in ("B-FP", "B-Q4"):
            place = tmp_path / f"{config}-{task}"
            place.mkdir()
            spec = make_spec(SMOKE, config, task)
            write_spec(spec, place / "spec.json")
            log = tracker.open(spec, None)
            execute(spec, place, Record(place, ALONE), ALONE)
            log.close(place, "FINISHED", {})
    return load_study(open_for_analysis(folder))


def predictions_of(study: Study, task: str, config: str = "B-FP") -> pd.DataFrame:
    runs = study.runs[(study.runs["task"] == task) & (study.runs["config"] == config)]
    return study.predictions(runs["run_id"].item())


@pytest.mark.parametrize("task", METRIC)
def test_runs_learn_and_their_quality_is_the_mean_over_examples(study: Study, task: str) -> None:
    runs = study.runs[study.runs["task"] == task]
    assert len(runs) == 2 and set(runs["metric"]) == {METRIC[task]}
    for run in runs.itertuples():
        assert run.quality > run.zero + 0.3
        values = METRICS[METRIC[task]].examples.read(study.predictions(run.run_id), run.run_name)["value"]
        assert len(values) == 32 and run.quality == pytest.approx(values.mean())


def test_the_table_of_questions_has_answers_and_their_scores(study: Study) -> None:
    rows = predictions_of(study, "toy_questions")
    names = {"id", "exact_match", "token_f1", "prediction_text", "reference_text", "loss", "windows"}
    assert names <= set(rows)
    assert rows["id"].is_unique and rows["windows"].max() > 1
    right = rows["prediction_text"] == rows["reference_text"]
    assert right.any() and (rows["exact_match"][right] == 1).all()
    assert (rows["token_f1"] >= rows["exact_match"]).all()


def test_the_table_of_facts_has_the_words_of_its_tokens(study: Study) -> None:
    rows = predictions_of(study, "toy_facts")
    assert set(rows["reference_text"]) <= {"good", "lovely", "bright", "fine", "bad", "dull", "poor", "weak"}
    is_right = rows["prediction"] == rows["label"]
    assert ((rows["prediction_text"] == rows["reference_text"]) == is_right).all()


@pytest.mark.parametrize("task", METRIC)
def test_arms_are_compared_by_the_test_of_their_metric(study: Study, task: str) -> None:
    (row,) = compare(study, task, ["B-FP"]).to_dict("records")
    assert row["test"] == TESTS[task] and row["margin"] == METRICS[METRIC[task]].margin
    assert row["low"] <= row["difference"] <= row["high"]


@pytest.mark.parametrize("task", METRIC)
def test_the_second_metric_of_a_kind_can_be_compared_too(study: Study, task: str) -> None:
    key, column = SECOND[task]
    again = replace(study, runs=study.runs.assign(metric=key))
    arms = load_arms(again, task)
    expected = predictions_of(study, task)[column].mean()
    assert arms["B-FP"].quality() == pytest.approx(expected)
    (row,) = compare(again, task, ["B-FP"]).to_dict("records")
    assert row["margin"] == METRICS[key].margin and row["low"] <= row["difference"] <= row["high"]


def test_the_report_has_a_verdict_on_both_tasks(study: Study) -> None:
    report = collect(study)
    for task in METRIC:
        assert any(line.startswith(f"{task}, against B-FP: B-Q4 ") for line in report.verdict)
    text = plain(report)
    assert "| F1 of words |" in text and "| Precision at 1 |" in text
    assert "points of F1 of words" in text and "naming the most frequent object" in text


@pytest.mark.parametrize("task", ["toy_questions", pytest.param("toy_facts", marks=pytest.mark.slow)])
def test_tasks_can_be_planned_for(task: str) -> None:
    formats = ("int4-g64", "bf16")
    spec = make_spec(SMOKE, "B-FP", task)
    made = make_plan(spec, PlanRequest("9bits", "exact", Choices(formats, ranks=(2, 4))))
    assert made.tables.base > 0 and set(made.plan.precision.values()) == set(formats)


def test_an_encoder_learns_the_masked_objects_of_facts_in_every_plan(tmp_path: Path) -> None:
    folder = str(tmp_path / "runs")
    tracker = Tracker(open_store(folder), folder, SMOKE.name)
    for config in ("B-FP", "B-Q4"):
        place = tmp_path / config
        place.mkdir()
        spec = make_spec(SMOKE, config, "toy_facts", MASKED)
        assert (spec.kind, spec.model) == (MASKED_PROBING, "tiny-mlm")
        write_spec(spec, place / "spec.json")
        log = tracker.open(spec, None)
        execute(spec, place, Record(place, ALONE), ALONE)
        log.close(place, "FINISHED", {})
        figures = json.loads((place / "result.json").read_text(encoding="utf-8"))
        assert figures["eval/loss"] < figures["zero/loss"] - 0.3
    study = load_study(open_for_analysis(folder))
    assert set(study.runs["kind"]) == {MASKED_PROBING} and set(study.runs["metric"]) == {"p_at_1"}
    (row,) = compare(study, "toy_facts", ["B-FP"]).to_dict("records")
    assert row["test"] == "McNemar, exact"


def test_an_encoder_can_be_planned_for_masked_facts() -> None:
    formats = ("int4-g64", "bf16")
    spec = make_spec(SMOKE, "B-FP", "toy_facts", MASKED)
    made = make_plan(spec, PlanRequest("9bits", "exact", Choices(formats, ranks=(2, 4))))
    assert made.tables.base > 0 and set(made.plan.precision.values()) == set(formats)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tiny-bart", "is an encoder-decoder .bart. and cannot predict a masked token"),
        ("tiny-llama", "cannot predict a masked token: transformers has no masked language model for llama"),
        ("tiny-bert", "tiny-bert"),
    ],
)
def test_models_without_a_head_for_masked_tokens_are_refused(model: str, message: str) -> None:
    spec = make_spec(SMOKE, "B-FP", "toy_facts", {**MASKED, "model": model})
    with pytest.raises(UserError, match=message):
        open_model(spec, (), "cpu", torch.float32)
