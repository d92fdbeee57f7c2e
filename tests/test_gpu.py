"""Formats, dtypes, peak memory, out-of-memory handling and random states on an accelerator.

Skipped on machines without one.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bitrank.process.events import read_events
from bitrank.run.record import Record
from bitrank.run.train_run import execute
from bitrank.sensitivity.calibration import calibration
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank_quant import (
    BACKENDS,
    FORMATS,
    available_overrides,
    choose_backend,
    override_for,
    parse_format,
    try_format,
)
from bitrank_quant.sensitivity import Replay, measure_sensitivities
from bitrank_trainer import (
    ALONE,
    FIRST_SCALE,
    OBJECTIVES,
    NoHook,
    Task,
    TrainSettings,
    available_devices,
    choose_dtype,
    train,
)
from study_tools import bitrank, store_runs

DEVICE = available_devices()[0]
CUDA = DEVICE == "cuda"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu", reason="no accelerator: torch sees neither CUDA, ROCm nor MPS on this machine"
)
only_cuda = pytest.mark.skipif(
    not CUDA, reason=f"this is for CUDA and ROCm, the accelerator here is {DEVICE}"
)

SERVED = [
    (b.name, text)
    for b in BACKENDS.values()
    for text, fmt in FORMATS.items()
    if b.serves(fmt) and fmt.bits < 16 and b.name != "quanto"
]


@pytest.mark.parametrize(("backend", "text"), SERVED)
def test_chosen_backend_works_on_this_machine(backend: str, text: str) -> None:
    fmt = parse_format(text)
    if choose_backend(fmt, DEVICE).name != backend and backend != "torch":
        pytest.skip(f"{backend} was tried for {text} on {DEVICE} and passed over")
    trial = try_format(BACKENDS[backend], fmt, DEVICE)
    assert trial.problem is None and trial.output_error < 0.05


@only_cuda
@pytest.mark.parametrize("name", ["cuda-4bit", "cuda-8bit"])
def test_bitsandbytes_serves_four_and_eight_bits(name: str) -> None:
    assert override_for(name, "cuda").backend == "bitsandbytes"
    assert name in available_overrides("cuda")


def go(
    folder: Path, config: str = "B-FP", task: str = "toy_articles", **changes: Any
) -> tuple[list[float], dict[str, float], list[Any]]:
    """Losses, result and events of a short run."""
    folder.mkdir()
    spec = make_spec(PROFILES["smoke"], config, task, {"steps": 12, "log_every": 1, **changes})
    execute(spec, folder, Record(folder, ALONE), ALONE)
    events = read_events(folder / "events.jsonl")
    losses = [event["metrics"]["train/loss"] for event in events if event["event"] == "train"]
    return losses, json.loads((folder / "result.json").read_text()), events


def test_sensitivity_is_measured_on_the_accelerator() -> None:
    spec = make_spec(PROFILES["smoke"], "B-FP", "toy_sentences")
    ready = calibration(spec)
    assert next(ready.model.parameters()).device.type == DEVICE
    formats = [parse_format(text) for text in ("int3-g64", "nf4-dq")]
    _, errors = measure_sensitivities(
        Replay(ready.model, ready.many, ready.forward), ready.matrices, formats, "search"
    )
    assert all(error.output > 0 and error.fisher > 0 for found in errors.values() for error in found.values())


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_16_bit_losses_are_near_those_of_fp32(tmp_path: Path, dtype: str) -> None:
    if dtype == "bf16" and choose_dtype(DEVICE) != "bf16":
        pytest.skip(f"{DEVICE} has no bf16 here")
    full, *_ = go(tmp_path / "full", dtype="fp32")
    half, result, events = go(tmp_path / "half", dtype=dtype)
    assert half == pytest.approx(full, rel=0.03)
    scales = {event["metrics"].get("train/loss_scale") for event in events if event["event"] == "train"}
    assert scales == ({FIRST_SCALE} if dtype == "fp16" else {None})
    assert result["mem/device_mib"] > 0


def test_losses_on_the_accelerator_are_near_those_on_the_cpu(tmp_path: Path) -> None:
    here, *_ = go(tmp_path / "here", dtype="fp32")
    cpu, *_ = go(tmp_path / "cpu", dtype="fp32", device="cpu")
    assert here == pytest.approx(cpu, rel=1e-2)


@only_cuda
@pytest.mark.parametrize(
    ("config", "task"),
    [
        ("B-FP", "toy_articles"),
        ("B-Q4", "toy_articles"),
        ("L4Q-Q4", "toy_articles"),
        ("Scales-Q4", "toy_articles"),
        ("B-FP", "toy_sentences"),
        ("B-Q4", "toy_sentences"),
        ("QA-LoRA-Q4", "toy_articles"),
        ("DoRA-Weight-Q4", "toy_articles"),
    ],
)
def test_graphs_give_the_losses_of_plain_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, task: str
) -> None:
    graphed, _, events = go(tmp_path / "graphed", config, task, dropout=0.0)
    monkeypatch.setenv("BITRANK_CUDA_GRAPHS", "0")
    plain, *_ = go(tmp_path / "plain", config, task, dropout=0.0)
    assert graphed == pytest.approx(plain, rel=0.01)
    assert [event for event in events if event["event"] == "cuda_graphs"]
    assert not [event for event in events if event["event"] == "no_cuda_graphs"]


@only_cuda
@pytest.mark.parametrize(
    ("name", "stored"), [("cuda-4bit", "nf4-dq@bitsandbytes"), ("cuda-8bit", "llm-int8@bitsandbytes")]
)
@pytest.mark.parametrize("config", ["B-Q4", "Joint-1"])
def test_command_line_trains_in_low_bits(tmp_path: Path, config: str, name: str, stored: str) -> None:
    done = bitrank(
        "run",
        "--profile",
        "smoke",
        "--config",
        config,
        "--task",
        "toy_articles",
        "--quant-backend",
        name,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = store_runs(tmp_path)
    assert stored in run["tags"]["stored_as"] and run["tags"]["device"] == "cuda"
    assert next(value for key, step, value in run["points"] if key == "mem/device_mib") > 0


class Wide(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.wide, self.head = (
            torch.nn.Embedding(50, 64),
            torch.nn.Linear(64, 16384),
            torch.nn.Linear(16384, 2),
        )

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.head(torch.tanh(self.wide(self.embedding(input_ids))).mean(1)))


def wide_batches(skip: int) -> Any:
    for number in range(skip, 10**6):
        ids = np.random.default_rng(number).integers(0, 50, (64, 128))
        yield {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "labels": (ids[:, 0] > 25).astype(int),
            "index": np.arange(64),
        }


def test_out_of_memory_halves_the_passes(tmp_path: Path) -> None:
    """A pass of 64 × 128 stores a gigabyte of activations; the process is limited to half of that."""

    def losses(folder: Path) -> tuple[list[float], list[Any]]:
        events: list[Any] = []
        task = Task(OBJECTIVES["classification"], wide_batches, lambda: {"acc": 0.5, "loss": 1.0}, DEVICE)
        train(
            Wide().to(DEVICE),
            task,
            NoHook(),
            TrainSettings(steps=3, learning_rate=1e-3, log_every=1),
            folder,
            events.append,
        )
        notices = [event for event in events if event["event"] == "out_of_memory"]
        return [event["metrics"]["train/loss"] for event in events if event["event"] == "train"], notices

    module = torch.cuda if CUDA else torch.mps
    whole, none = losses(tmp_path / "whole")
    module.empty_cache()
    total = torch.cuda.mem_get_info()[1] if CUDA else torch.mps.recommended_max_memory()
    held = torch.cuda.memory_reserved() if CUDA else torch.mps.driver_allocated_memory()
    module.set_per_process_memory_fraction((held + 2**29) / total)
    try:
        cut, notices = losses(tmp_path / "cut")
    finally:
        module.set_per_process_memory_fraction(1.0)
    assert not none and notices and notices[0]["message"].startswith("out of memory at step 1")
    assert cut == pytest.approx(whole, rel=1e-3)


def test_resumed_run_has_the_dropout_of_an_uninterrupted_one(tmp_path: Path) -> None:
    """The checkpoint contains the accelerator's random state."""
    straight, *_ = go(
        tmp_path / "straight", "B-FP", "toy_sentences", dropout=0.2, steps=10, checkpoint_every=5
    )
    from bitrank_trainer import loop

    class Stop(Exception):
        pass

    saved, after = [], loop._after

    def stop_at_five(*arguments: Any) -> None:
        after(*arguments)
        saved.append(1)
        if len(saved) == 5:
            raise Stop

    loop._after = stop_at_five
    try:
        with pytest.raises(Stop):
            go(tmp_path / "cut", "B-FP", "toy_sentences", dropout=0.2, steps=10, checkpoint_every=5)
    finally:
        loop._after = after
    folder = tmp_path / "cut"
    spec = make_spec(
        PROFILES["smoke"],
        "B-FP",
        "toy_sentences",
        {"steps": 10, "log_every": 1, "dropout": 0.2, "checkpoint_every": 5},
    )
    execute(spec, folder, Record(folder, ALONE), ALONE)
    losses = [
        event["metrics"]["train/loss"]
        for event in read_events(folder / "events.jsonl")
        if event["event"] == "train"
    ]
    assert losses == pytest.approx(straight, rel=1e-5)
