"""Training loop: resumption, hook calls, best weights, divergence."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice

import pytest
import torch
from bitrank_trainer import OBJECTIVES, Diverged, NoHook, Task, TrainError, TrainSettings, evaluate, train
from tiny_problem import batch, batches

OBJECTIVE = OBJECTIVES["classification"]
SETTINGS = TrainSettings(
    steps=30, learning_rate=1e-2, log_every=5, eval_every=10, checkpoint_every=7, accumulation=2
)


class Stop(Exception):
    pass


def task_for(model, stop_after: int | None = None):
    """A task that stops after ``stop_after`` micro-batches, like a killed process."""

    def limited(skip: int):
        stream = batches(skip)
        yield from stream if stop_after is None else islice(stream, stop_after)
        raise Stop

    def validate() -> dict[str, float]:
        return evaluate(model, [batch(n) for n in range(30, 34)], OBJECTIVE, "cpu").metrics

    return Task(OBJECTIVE, limited, validate)


def run(make, folder, hook=None, settings=SETTINGS, stop_after=None):
    model, events = make("classification"), []
    progress = train(model, task_for(model, stop_after), hook or NoHook(), settings, folder, events.append)
    return model, progress, events


@pytest.mark.parametrize("stop_after", [3, 14, 15, 33, 59])
def test_resumed_run_equals_uninterrupted_run(make, tmp_path, stop_after: int) -> None:
    straight, straight_progress, straight_events = run(make, tmp_path / "a")
    with pytest.raises((Stop, RuntimeError)):
        run(make, tmp_path / "b", stop_after=stop_after)
    resumed, progress, events = run(make, tmp_path / "b")
    for (name, a), (_, b) in zip(straight.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert (progress.step, progress.tokens, progress.best_step, progress.best_score) == (
        straight_progress.step,
        straight_progress.tokens,
        straight_progress.best_step,
        straight_progress.best_score,
    )
    assert figures(events)[-1] == figures(straight_events)[-1]


def figures(events):
    return [(e["step"], e["metrics"]) for e in events if "metrics" in e]


def test_training_improves_and_ends_at_the_best_validation(make, tmp_path) -> None:
    model, progress, events = run(
        make, tmp_path, settings=TrainSettings(steps=200, learning_rate=3e-2, eval_every=20)
    )
    validations = {e["step"]: e["metrics"]["val/acc"] for e in events if e["event"] == "validation"}
    assert progress.best_score == max(validations.values()) > 0.7
    assert validations[progress.best_step] == progress.best_score
    assert task_for(model).validate()["acc"] == progress.best_score


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_validation_that_is_not_finite_is_never_the_best(make, tmp_path, value: float) -> None:
    model = make("classification")
    scores = iter([value, 0.9, 0.8])
    task = replace(task_for(model), validate=lambda: {"acc": next(scores)})
    progress = train(model, task, NoHook(), SETTINGS, tmp_path, lambda event: None)
    assert (progress.best_step, progress.best_score) == (20, 0.9)


def test_training_without_a_finite_validation_has_diverged(make, tmp_path) -> None:
    model = make("classification")
    task = replace(task_for(model), validate=lambda: {"acc": math.nan})
    with pytest.raises(Diverged, match="no validation was finite; the last acc is nan"):
        train(model, task, NoHook(), SETTINGS, tmp_path, lambda event: None)


def test_events_contain_loss_norm_and_rate_at_the_set_steps(make, tmp_path) -> None:
    _, _, events = run(make, tmp_path)
    trained = [e for e in events if e["event"] == "train"]
    assert [e["step"] for e in trained] == [1, 5, 10, 15, 20, 25, 30]
    assert all({"train/loss", "train/grad_norm", "train/lr"} <= set(e["metrics"]) for e in trained)
    assert [e["step"] for e in events if e["event"] == "validation"] == [10, 20, 30]
    assert [e["step"] for e in events if e["event"] == "checkpoint"] == [7, 14, 21, 28, 30]
    assert len(list(tmp_path.glob("step-*"))) == 1


class Recorder(NoHook):
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.weight = torch.nn.Parameter(torch.tensor(2.0))

    def penalty(self):
        return 0.25 * self.weight

    def after_step(self, step: int) -> None:
        self.steps.append(step)

    def settled(self, step: int) -> bool:
        return step >= 25


def test_hook_runs_each_step_and_its_penalty_is_logged_separately(make, tmp_path) -> None:
    hook = Recorder()
    _, progress, events = run(make, tmp_path, hook)
    plain = run(make, tmp_path / "plain")[2]
    assert hook.steps == list(range(1, 31))
    assert {e["metrics"]["train/reg"] for e in events if e["event"] == "train"} == {0.5}
    first = next(e for e in events if e["event"] == "train")["metrics"]["train/loss"]
    assert first == next(e for e in plain if e["event"] == "train")["metrics"]["train/loss"]
    assert progress.best_step == 30  # the only validation after the ranks settled


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonfinite_loss_raises_diverged(make, tmp_path, value: float) -> None:
    class Broken:
        metric, higher_is_better = "acc", True

        def __init__(self) -> None:
            self.calls = 0

        def loss(self, model, batch, device):
            self.calls += 1
            return OBJECTIVE.loss(model, batch, device) * (value if self.calls > 5 else 1.0)

        rows, metrics, weight = OBJECTIVE.rows, OBJECTIVE.metrics, OBJECTIVE.weight

    model = make("classification")
    task = Task(Broken(), batches, lambda: {"acc": 0.5, "loss": 1.0})
    with pytest.raises(Diverged, match="diverged at step 6: the loss is") as caught:
        train(model, task, NoHook(), TrainSettings(steps=10), tmp_path, lambda _: None)
    assert caught.value.step == 6


def test_rising_smoothed_loss_raises_diverged(make, tmp_path) -> None:
    with pytest.raises(Diverged, match="smoothed loss rose"):
        run(make, tmp_path, settings=TrainSettings(steps=300, learning_rate=300.0, warmup=0.0, clip=1e9))


def test_model_without_trainable_parameters_raises_train_error(make, tmp_path) -> None:
    model = make("classification").requires_grad_(False)
    with pytest.raises(TrainError, match="no trainable parameter"):
        train(model, task_for(model), NoHook(), SETTINGS, tmp_path, lambda _: None)


def test_accumulation_equals_one_big_batch(make, tmp_path) -> None:
    """Two halves of eight and one batch of sixteen take the same first step (no dropout, equal halves)."""
    import numpy as np

    halves = [batch(0), batch(1)]
    whole = {key: np.concatenate([half[key] for half in halves]) for key in halves[0]}
    after = []
    for parts, accumulation in ((halves, 2), ([whole], 1)):
        model = make("classification")
        model.dropout.p = 0.0
        task = Task(OBJECTIVE, lambda skip, parts=parts: iter(parts), lambda: {"acc": 0.0, "loss": 0.0})
        settings = TrainSettings(steps=1, accumulation=accumulation, learning_rate=1e-3)
        train(model, task, NoHook(), settings, tmp_path / str(accumulation), lambda _: None)
        after.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(after[0], after[1], atol=1e-6)
