"""fp16 with a loss scale: losses as in fp32, overflows skipped, scale saved in checkpoints."""

from __future__ import annotations

import math
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bitrank_trainer import FIRST_SCALE, OBJECTIVES, Diverged, NoHook, Task, TrainSettings, evaluate, train
from tiny_problem import batch, batches
from torch import nn

OBJECTIVE = OBJECTIVES["classification"]


class HalfBody(nn.Module):
    """Frozen body in ``dtype`` with trainable fp32 factors, like an adapted fp16 model."""

    def __init__(self, dtype: torch.dtype, shrink: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 8)
        self.down, self.up = nn.Parameter(torch.randn(4, 8) * 0.3), nn.Parameter(torch.randn(8, 4) * 0.3)
        self.linear = nn.Linear(8, 2)
        self.embedding.to(dtype).requires_grad_(False)
        self.linear.to(dtype).requires_grad_(False)
        self.shrink = shrink

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        x = self.embedding(input_ids)
        x = x + x @ self.down.to(x.dtype).T @ self.up.to(x.dtype).T
        mask = attention_mask[..., None].to(x.dtype)
        return SimpleNamespace(logits=self.linear((x * mask).sum(1) / mask.sum(1)) * self.shrink)


def settings(scale: float | None, **options: Any) -> TrainSettings:
    return TrainSettings(
        **{
            "steps": 40,
            "learning_rate": 2e-2,
            "log_every": 1,
            "eval_every": 20,
            "checkpoint_every": 7,
            **options,
        },
        loss_scale=scale,
    )


def run(model, folder, chosen, stop_after=None, objective=OBJECTIVE):
    events: list[dict[str, Any]] = []

    def limited(skip: int):
        stream = batches(skip)
        yield from stream if stop_after is None else islice(stream, stop_after)

    task = Task(objective, limited, lambda: evaluate(model, [batch(30)], OBJECTIVE, "cpu").metrics)
    progress = train(model, task, NoHook(), chosen, folder, events.append)
    return progress, [e["metrics"] for e in events if e["event"] == "train"]


def test_fp16_losses_equal_fp32_losses(tmp_path) -> None:
    """The loss of each of 40 steps agrees within 1 %: fp16 has 3 significant digits."""
    _, half = run(HalfBody(torch.float16), tmp_path / "a", settings(FIRST_SCALE))
    _, full = run(HalfBody(torch.float32), tmp_path / "b", settings(None))
    assert [m["train/loss"] for m in half] == pytest.approx([m["train/loss"] for m in full], rel=0.01)
    assert [m["train/grad_norm"] for m in half] == pytest.approx(
        [m["train/grad_norm"] for m in full], rel=0.05
    )
    assert half[0]["train/loss"] - half[-1]["train/loss"] > 0.05
    assert half[-1]["train/skipped"] == 0 and half[-1]["train/loss_scale"] == FIRST_SCALE
    assert not {"train/skipped", "train/loss_scale"} & set(full[0])


def test_small_gradients_underflow_in_fp16_without_a_scale(tmp_path) -> None:
    """A gradient of 1e-8 underflows in fp16 and is exact with a scale."""
    norms = {}
    for scale in (None, FIRST_SCALE):
        _, metrics = run(
            HalfBody(torch.float16, shrink=1e-6), tmp_path / str(scale), settings(scale, steps=1, clip=1e9)
        )
        norms[scale] = metrics[0]["train/grad_norm"]
    _, exact = run(
        HalfBody(torch.float32, shrink=1e-6), tmp_path / "exact", settings(None, steps=1, clip=1e9)
    )
    assert norms[None] < 0.5 * exact[0]["train/grad_norm"]
    assert norms[FIRST_SCALE] == pytest.approx(exact[0]["train/grad_norm"], rel=0.05)


def test_gradients_are_clipped_after_unscaling(tmp_path) -> None:
    """The logged norm is the unscaled one; clipping scaled gradients would clip in every step."""
    _, scaled = run(HalfBody(torch.float32), tmp_path / "a", settings(1024.0, clip=1e-3))
    _, plain = run(HalfBody(torch.float32), tmp_path / "b", settings(None, clip=1e-3))
    assert [m["train/loss"] for m in scaled] == pytest.approx([m["train/loss"] for m in plain], rel=1e-5)
    assert [m["train/grad_norm"] for m in scaled] == pytest.approx(
        [m["train/grad_norm"] for m in plain], rel=1e-4
    )


def test_overflow_steps_are_skipped_and_counted(tmp_path) -> None:
    """A scale of 2³⁰ overflows fp16 until it is halved often enough; until then parameters are constant."""
    progress, metrics = run(HalfBody(torch.float16), tmp_path / "a", settings(2.0**30, warmup=0.0))
    skipped = [m["train/skipped"] for m in metrics]
    assert progress.skipped == skipped[-1] > 5
    assert skipped == sorted(skipped) and all(math.isfinite(m["train/grad_norm"]) for m in metrics)
    assert metrics[-1]["train/loss_scale"] == 2.0**30 / 2**progress.skipped
    unchanged_steps = sum(count == step for step, count in enumerate(skipped, start=1))
    unchanged = HalfBody(torch.float16)
    run(unchanged, tmp_path / "b", settings(2.0**30, warmup=0.0, steps=unchanged_steps))
    assert torch.equal(unchanged.down, HalfBody(torch.float16).down)
    assert metrics[-1]["train/loss"] < metrics[0]["train/loss"]


def test_hook_receives_zero_gradients_in_a_skipped_step(tmp_path) -> None:
    """AdaLoRA averages |w · gradient|: one infinite gradient would turn its importance into NaN."""
    model, seen = HalfBody(torch.float16), []

    class Watcher(NoHook):
        def after_step(self, step: int) -> None:
            seen.append(float(model.down.grad.abs().max()))

    task = Task(OBJECTIVE, batches, lambda: {"acc": 0.0, "loss": 1.0})
    progress = train(model, task, Watcher(), settings(2.0**30), tmp_path, lambda _: None)
    assert sum(size == 0 for size in seen) == progress.skipped > 5
    assert all(math.isfinite(size) for size in seen)


def test_overflow_at_scale_1_raises_diverged(tmp_path) -> None:
    class Steep:
        metric, higher_is_better = "acc", True
        rows, metrics, weight = OBJECTIVE.rows, OBJECTIVE.metrics, OBJECTIVE.weight

        def loss(self, model, batch, device):
            return OBJECTIVE.loss(model, batch, device) * 1e30

    with pytest.raises(Diverged, match="fp16 gradients overflow at a loss scale of 1"):
        run(HalfBody(torch.float16), tmp_path, settings(FIRST_SCALE), objective=Steep())


@pytest.mark.parametrize("stop_after", [9, 15, 30])
def test_resumed_run_continues_with_its_loss_scale(tmp_path, stop_after: int) -> None:
    chosen = settings(2.0**30)
    straight = HalfBody(torch.float16)
    whole, metrics = run(straight, tmp_path / "a", chosen)
    with pytest.raises((StopIteration, RuntimeError)):
        run(HalfBody(torch.float16), tmp_path / "b", chosen, stop_after=stop_after)
    resumed = HalfBody(torch.float16)
    progress, later = run(resumed, tmp_path / "b", chosen)
    assert (progress.skipped, progress.scaling) == (whole.skipped, whole.scaling)
    assert later == metrics[-len(later) :]
    assert torch.equal(straight.down, resumed.down) and torch.equal(straight.up, resumed.up)
