"""An optimizer step has the same sequences and mean for every split by a spec or device."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import bitrank.run.memory_limits
import numpy as np
import pytest
from bitrank.process.events import read_events
from bitrank.run.data import load_data
from bitrank.run.record import Record
from bitrank.run.train_run import execute
from bitrank.run.train_settings import settings_for, step_parts, step_sequences
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.spec.run_spec import RunSpec
from bitrank.spec.tiny_models import VOCABULARY
from bitrank_trainer import ALONE

SMOKE = PROFILES["smoke"]
CUTS = ((8, 1), (4, 2), (2, 4), (1, 8))  # batch_size × accumulation
DEVICES = ("cpu", "cuda", "mps")


@pytest.fixture
def documents(tmp_path: Path) -> str:
    """Texts of 3 to 30 words, short and long mixed."""
    draw, lengths = random.Random(5), [3, 30, 4, 27, 3, 25, 5, 29, 4, 3] * 4
    words = [word for word in VOCABULARY if word.isalpha()]
    rows = [{"text": " ".join(draw.choice(words) for _ in range(length))} for length in lengths]
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def go(folder: Path, config: str, task: str, **changes: Any) -> dict[str, list[float]]:
    """Figures of the first steps of a real run, in this process."""
    folder.mkdir()
    given = {"steps": 3, "dtype": "fp32", "log_every": 1, "eval_every": 3, "device": "cpu", **changes}
    execute(make_spec(SMOKE, config, task, given), folder, Record(folder, ALONE), ALONE)
    events = read_events(folder / "events.jsonl")
    trained = [event["metrics"] for event in events if event["event"] == "train"]
    return {name: [step[name] for step in trained] for name in ("train/loss", "train/grad_norm")}


def spec_of(**fields: Any) -> RunSpec:
    plain: dict[str, Any] = {"config": "B-FP", "task": "toy_sentences", "model": "tiny-bert"}
    return RunSpec(**(plain | fields))


@pytest.mark.parametrize("config", ["B-FP", "B-Ada"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
def test_batch_size_times_accumulation_is_one_batch(
    config: str,
    fused: bool,
    documents: str,
    tmp_path: Path,
) -> None:
    """Language modelling, where a mean of means would weigh tokens of short texts more, and AdaLoRA."""
    runs = []
    for size, times in CUTS:
        folder = tmp_path / f"{size}x{times}"
        runs.append(go(folder, config, documents, batch_size=size, accumulation=times, fused=fused))
    for run in runs[1:]:
        assert run["train/loss"] == pytest.approx(runs[0]["train/loss"], rel=1e-5)
        assert run["train/grad_norm"] == pytest.approx(runs[0]["train/grad_norm"], rel=1e-4)


@pytest.mark.parametrize("task", ["toy_sentences", "documents"])
def test_tensor_limits_do_not_change_accumulated_steps(
    task: str,
    documents: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = documents if task == "documents" else task
    whole = go(tmp_path / "whole", "B-FP", name, batch_size=8)
    monkeypatch.setattr(bitrank.run.memory_limits, "MPS_BYTES", 2**16 if task == "documents" else 2**15)
    cut = go(tmp_path / "cut", "B-FP", name, batch_size=4, accumulation=2, mps_safe=True)
    assert cut["train/loss"] == pytest.approx(whole["train/loss"], rel=1e-5)
    assert cut["train/grad_norm"] == pytest.approx(whole["train/grad_norm"], rel=1e-4)


@pytest.mark.parametrize("task", ["toy_sentences", "toy_articles"])
def test_an_epoch_has_the_same_steps_with_whole_batches_and_with_halves(task: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": None, "epochs": 1, "batch_size": 8, "eval_every": 99}
    halves = go(tmp_path / "halves", "B-FP", task, **options)
    whole = go(tmp_path / "whole", "B-FP", task, **options, accumulation=1)
    assert len(halves["train/loss"]) > 3
    assert halves["train/loss"] == pytest.approx(whole["train/loss"], rel=1e-4)


@pytest.mark.parametrize("length", [{"epochs": 3}, {"steps": 50}], ids=str)
@pytest.mark.parametrize("accumulation", [0, 1, 2, 3])
def test_steps_and_their_sequences_are_the_same_on_every_device(
    length: dict[str, int],
    accumulation: int,
) -> None:
    spec = spec_of(**length, batch_size=8, accumulation=accumulation)
    assert step_sequences(spec) == 8 * max(1, accumulation)
    assert len({settings_for(spec, 101, device).steps for device in DEVICES}) == 1
    if accumulation:
        assert {step_parts(spec, device) for device in DEVICES} == {accumulation}


def test_the_default_splits_batches_only_on_a_cpu_that_trains_by_epochs() -> None:
    by_epochs, by_steps = spec_of(epochs=3), spec_of(steps=50)
    assert [step_parts(by_epochs, device) for device in DEVICES] == [2, 1, 1]
    assert [step_parts(by_steps, device) for device in DEVICES] == [1, 1, 1]
    # A half must still have a sequence for each process.
    assert step_parts(replace(by_epochs, batch_size=8, processes=4), "cpu") == 2
    assert step_parts(replace(by_epochs, batch_size=8, processes=5), "cpu") == 1
    assert step_parts(replace(by_epochs, batch_size=1), "cpu") == 1


def test_the_last_short_step_of_an_epoch_is_counted() -> None:
    spec = spec_of(epochs=3, batch_size=8)
    assert settings_for(spec, 16, "cpu").steps == 6
    assert settings_for(spec, 17, "cpu").steps == 9
    assert settings_for(replace(spec, accumulation=2), 17, "cuda").steps == 6


def test_the_sequences_of_a_step_do_not_depend_on_its_parts() -> None:
    steps: list[list[list[int]]] = []
    for size, times in CUTS:
        options = {"batch_size": size, "accumulation": times, "device": "cpu"}
        data = load_data(make_spec(SMOKE, "B-FP", "toy_sentences", options))
        parts = [batch["index"] for batch in islice(data.train_batches(0), 12 * times)]
        each = [np.concatenate(parts[start : start + times]) for start in range(0, len(parts), times)]
        steps.append([indices.tolist() for indices in each])
    assert all(found == steps[0] for found in steps)
