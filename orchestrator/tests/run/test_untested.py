"""Runs without a test, such as those that choose a learning rate: validation alone, the same training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bitrank.cli.display import results_table
from bitrank.forecast.workload import workload
from bitrank.process.events import read_events
from bitrank.process.run_folder import is_complete
from bitrank.run.record import Record
from bitrank.run.train_run import execute
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.spec.run_spec import RunSpec, write_spec
from bitrank_trainer import ALONE


def spec_of(task: str, tested: bool) -> RunSpec:
    config = "Encoder-8" if task == "toy_summaries" else "B-Ada"
    return make_spec(PROFILES["smoke"], config, task, {"steps": 6, "dtype": "fp32", "tested": tested})


def run(spec: RunSpec, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    write_spec(spec, folder / "spec.json")
    execute(spec, folder, Record(folder, ALONE), ALONE)
    return dict(json.loads((folder / "result.json").read_text()))


def curve(folder: Path) -> list[dict[str, Any]]:
    """The points of the run in ``folder``, without times and memory."""
    varying = {"time_ms", "live", "seconds", "tok_s"}
    return [
        {key: value for key, value in event.items() if key not in varying}
        for event in read_events(folder / "events.jsonl")
        if event["event"] in {"train", "validation", "ranks"}
    ]


@pytest.mark.parametrize("task", ["toy_sentences", "toy_articles", "toy_summaries"])
def test_training_is_the_same_and_nothing_is_known_of_the_test(task: str, tmp_path: Path) -> None:
    with_test, without = tmp_path / "with", tmp_path / "without"
    full, short = run(spec_of(task, True), with_test), run(spec_of(task, False), without)
    curves = [curve(folder) for folder in (with_test, without)]
    assert curves[0] == curves[1] != []
    tested = {key for key in full if key.startswith(("eval/", "zero/"))}
    speeds = {"speed/infer_tok_s", "speed/eval_tok_s", "time/eval_s"}
    generated = {"time/generate_s"} & full.keys()
    assert len(tested) >= 2 and full.keys() - short.keys() == tested | speeds | generated
    assert short.keys() <= full.keys() and short["lora/params"] == full["lora/params"]
    names = {path.name for path in without.iterdir()}
    assert {path.name for path in with_test.iterdir()} - names >= {"zero_shot.json", "predictions.parquet"}
    assert is_complete(without)
    table = results_table([(spec_of(task, False), short, "finished")])
    quality = [list(table.columns[place].cells) for place in (2, 3)]
    assert quality == [[""], [""]] and len(table.columns) > 4, "no figure before and after training"


@pytest.mark.parametrize("task", ["toy_sentences", "toy_summaries"])
def test_the_forecast_has_no_tokens_of_the_test(task: str) -> None:
    full, short = (workload(spec_of(task, tested), "cpu") for tested in (True, False))
    assert short.evaluation_tokens < full.evaluation_tokens and short.train_tokens == full.train_tokens
    assert short.prompts == frozenset()
