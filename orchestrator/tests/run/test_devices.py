"""Behaviour on other devices, tested on this one: tensor limits, fp16, out of memory, notices."""

from __future__ import annotations

import json
import math
import os
import platform
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import bitrank.run.memory_limits
import pytest
import torch
from bitrank.process.environment import mps_environment, run_environment, set_own_environment
from bitrank.process.events import read_events
from bitrank.run.data import load_data
from bitrank.run.notices import report_mps_fallbacks
from bitrank.run.record import Record
from bitrank.run.train_run import execute
from bitrank.spec.make_spec import make_spec
from bitrank.spec.parse import parse_setting
from bitrank.spec.profiles import PROFILES
from bitrank_trainer import ALONE

SMOKE = PROFILES["smoke"]
_FALLBACK = "PYTORCH_ENABLE_MPS_FALLBACK"


def go(
    folder: Path, config: str = "B-FP", task: str = "toy_sentences", **changes: Any
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The events and the result of a short run, executed in this process."""
    folder.mkdir()
    spec = make_spec(
        SMOKE, config, task, {"steps": 12, "dtype": "fp32", "log_every": 1, "batch_size": 8, **changes}
    )
    execute(spec, folder, Record(folder, ALONE), ALONE)
    return read_events(folder / "events.jsonl"), json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("task", ["toy_sentences", "toy_articles"])
def test_padding_to_a_multiple_changes_no_number(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, widths = [], []
    for multiple in (1, 8):
        spec = make_spec(SMOKE, "B-FP", task, {"dtype": "fp32", "batch_size": 8})
        monkeypatch.setattr(
            "bitrank.run.data.width_multiple", lambda device, dtype, multiple=multiple: multiple
        )
        found.append(go(tmp_path / str(multiple), task=task))
        widths.append([batch["input_ids"].shape[1] for batch in islice(load_data(spec).train_batches(0), 12)])
    (plain, plain_result), (padded, padded_result) = found
    assert widths[0] != widths[1], "some batch was padded"
    assert losses(padded) == pytest.approx(losses(plain), rel=1e-4)
    metric = next(key for key in plain_result if key in {"eval/acc", "eval/ppl"})
    assert padded_result[metric] == pytest.approx(plain_result[metric], rel=1e-3)


def test_only_compiled_shapes_are_padded() -> None:
    def widths(**changes: Any) -> set[int]:
        data = load_data(
            make_spec(SMOKE, "B-FP", "toy_sentences", {"device": "cpu", "batch_size": 2, **changes})
        )
        return {batch["input_ids"].shape[1] for batch in islice(data.train_batches(0), 60)}

    exact, padded = widths(dtype="fp32"), widths(dtype="bf16")
    assert any(width % 8 for width in exact) and len(padded) < len(exact)
    assert all(width % 8 == 0 or width == max(exact) for width in padded)
    assert widths(dtype="bf16", fused=False) == exact


def losses(events: list[dict[str, Any]]) -> list[float]:
    return [event["metrics"]["train/loss"] for event in events if event["event"] == "train"]


def notices_of(events: list[dict[str, Any]], tag: str) -> list[str]:
    return [event["tags"][tag] for event in events if tag in event.get("tags", {})]


@pytest.mark.parametrize(("task", "bound"), [("toy_sentences", 2**15), ("toy_articles", 2**16)])
def test_mps_safe_changes_the_passes_and_not_the_curve(tmp_path, monkeypatch, task: str, bound: int) -> None:
    """A small limit splits batches: losses agree to 1e-6 (fp32 rounding), test figures to 1e-4."""
    plain, plain_result = go(tmp_path / "plain", task=task)
    monkeypatch.setattr(bitrank.run.memory_limits, "MPS_BYTES", bound)
    cut, cut_result = go(tmp_path / "cut", task=task, mps_safe=True)
    assert notices_of(plain, "mps_safe") == []
    (message,) = notices_of(cut, "mps_safe")
    assert message.startswith("passes of ") and "of 8 sequences" in message
    assert losses(cut) == pytest.approx(losses(plain), rel=1e-6)
    assert cut_result["eval/loss"] == pytest.approx(plain_result["eval/loss"], rel=1e-4)


def test_mps_safe_does_not_split_batches_that_fit(tmp_path) -> None:
    plain, _ = go(tmp_path / "plain")
    safe, _ = go(tmp_path / "safe", mps_safe=True)
    assert losses(safe) == losses(plain)
    assert notices_of(safe, "mps_safe")[0].startswith("whole batches: the largest tensor takes")


def test_a_sequence_over_the_limit_is_rejected_before_training(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(bitrank.run.memory_limits, "MPS_BYTES", 2**10)
    with pytest.raises(ValueError, match=r"makes a tensor of .* over the limit of 1,024"):
        go(tmp_path / "run", mps_safe=True)
    assert "zero-shot" not in {event.get("phase") for event in read_events(tmp_path / "run" / "events.jsonl")}


def test_mps_safe_is_a_field_of_the_spec() -> None:
    base = make_spec(SMOKE, "B-FP", "toy_sentences")
    assert not base.mps_safe and parse_setting("mps_safe=true") == ("mps_safe", True)
    assert make_spec(SMOKE, "B-FP", "toy_sentences", {"mps_safe": True}).spec_id != base.spec_id


@pytest.mark.parametrize(("config", "task"), [("B-Q4", "toy_articles"), ("B-Ada", "toy_sentences")])
def test_fp16_runs_scale_the_loss_and_follow_the_curve_of_fp32(tmp_path, config: str, task: str) -> None:
    """Within 2 % of each loss over 12 steps: fp16 has three digits, and the steps add up."""
    full, _ = go(tmp_path / "full", config, task)
    half, result = go(tmp_path / "half", config, task, dtype="fp16")
    assert losses(half) == pytest.approx(losses(full), rel=0.02)
    assert result["train/skipped_steps"] == 0
    assert {event["metrics"]["train/loss_scale"] for event in half if event["event"] == "train"} == {2.0**16}
    assert not any("train/loss_scale" in event.get("metrics", {}) for event in full)


def test_out_of_memory_splits_the_batch_and_emits_a_notice(tmp_path, monkeypatch) -> None:
    """A classifier's forward pass raises the allocator's out-of-memory error above four sequences."""
    from transformers import BertForSequenceClassification

    whole, _ = go(tmp_path / "whole")
    plain = BertForSequenceClassification.forward

    def limited(self, input_ids=None, **inputs):
        if torch.is_grad_enabled() and len(input_ids) > 4:
            torch.empty(2**50)
        return plain(self, input_ids=input_ids, **inputs)

    monkeypatch.setattr(BertForSequenceClassification, "forward", limited)
    cut, _ = go(tmp_path / "cut")
    assert notices_of(cut, "out_of_memory")[0].startswith("out of memory at step 1 with 8 × ")
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-6)


def test_a_rejected_backend_emits_a_notice(tmp_path, monkeypatch) -> None:
    from dataclasses import replace

    from bitrank_quant import BACKENDS
    from bitrank_quant.backends.probe import cached_probe

    absent = pytest.importorskip("bitsandbytes.cextension").ErrorHandlerMockBNBNativeLibrary

    def make(linear, fmt, dtype):
        absent("").cquantize_blockwise_bf16_nf4()

    monkeypatch.setitem(BACKENDS, "bitsandbytes", replace(BACKENDS["bitsandbytes"], make=make))
    cached_probe.cache_clear()
    try:
        events, _ = go(tmp_path / "run", "B-Q4", steps=2)
    finally:
        cached_probe.cache_clear()
    assert notices_of(events, "stored_as") == ["bf16@torch, nf4-dq@torch"]
    assert notices_of(events, "fallback")[0].startswith(
        "nf4-dq uses torch: bitsandbytes fails here (RuntimeError: "
    )


def test_each_operation_that_falls_back_from_mps_emits_one_notice() -> None:
    events: list[dict[str, Any]] = []
    with warnings.catch_warnings(), report_mps_fallbacks(events.append):
        warnings.simplefilter("always")
        for name in ("aten::sgn.out", "aten::nonzero", "aten::sgn.out"):
            warnings.warn(
                f"The operator '{name}' is not currently supported on the MPS backend and will fall back to "
                "run on the CPU. This may have performance implications. "
                "(Triggered internally at aten/src/ATen/mps/MPSFallback.mm:12.)",
                stacklevel=1,
            )
        warnings.warn("something else", stacklevel=1)
    assert [event["tags"]["mps_fallback"] for event in events] == [
        "missing on MPS and computed on the CPU, which is slower: aten::sgn.out",
        "missing on MPS and computed on the CPU, which is slower: aten::nonzero, aten::sgn.out",
    ]


def test_the_mps_fallback_is_enabled_before_torch_is_imported_on_apple_silicon_only(monkeypatch) -> None:
    if platform.system() != "Darwin":
        assert mps_environment("auto") == {}
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert mps_environment("auto") == mps_environment("mps") == {"PYTORCH_ENABLE_MPS_FALLBACK": "1"}
    assert mps_environment("cpu") == {}
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "0")
    assert run_environment(make_spec(SMOKE, "B-FP", "toy_sentences"))["PYTORCH_ENABLE_MPS_FALLBACK"] == "0"


@pytest.mark.parametrize(
    ("system", "given", "expected"),
    [("Darwin", {}, "1"), ("Linux", {}, None), ("Darwin", {_FALLBACK: "0"}, "0")],
)
def test_commands_that_compute_in_their_own_process_enable_the_mps_fallback_too(
    monkeypatch: pytest.MonkeyPatch, system: str, given: dict[str, str], expected: str | None
) -> None:
    variables = dict(given)
    monkeypatch.setattr(os, "environ", variables)
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    set_own_environment()
    assert variables.get(_FALLBACK) == expected


@pytest.mark.parametrize("changes", [{}, {"accumulation": 2}])
def test_time_of_an_epoch_is_that_of_its_steps(tmp_path: Path, changes: dict[str, int]) -> None:
    """The last batch of an epoch may be short, so sequences are not proportional to steps."""
    _, result = go(tmp_path / "run", **changes)
    in_an_epoch = len(load_data(make_spec(SMOKE, "B-FP", "toy_sentences")).task.splits["train"])
    steps = math.ceil(in_an_epoch / (8 * changes.get("accumulation", 1)))
    assert result["time/epoch_s"] == pytest.approx(result["time/train_s"] * steps / 12)
