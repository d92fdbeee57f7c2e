"""The training loop: batches, an objective and a hook, independent of methods, plans and trackers.

Every event is passed to ``emit`` as a small dict with a step. Training can stop at any moment and continue
from its last checkpoint with the same numbers: the checkpoint contains parameters, optimizer moments, the
hook's moving averages, random states and the position in the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bitrank_trainer.checkpoints import (
    Progress,
    best_weights,
    drop_old,
    load_weights,
    restore_checkpoint,
    save_checkpoint,
    save_weights,
)
from bitrank_trainer.cuda_graphs import graphs_for
from bitrank_trainer.distributed.data_parallel import ALONE, Processes
from bitrank_trainer.errors import Diverged, TrainError
from bitrank_trainer.gradients import Emit, Passes
from bitrank_trainer.hooks import RankHook
from bitrank_trainer.loss_scale import Scaling
from bitrank_trainer.memory.meters import Throughput
from bitrank_trainer.model_inputs import Batch
from bitrank_trainer.objectives import Objective
from bitrank_trainer.optimizer import follow, named_adamw, trainable
from bitrank_trainer.settings import TrainSettings

# nats: training diverges if the smoothed loss exceeds its minimum by this and by half the minimum
_RUNAWAY = 2.0
_SMOOTH = 0.9


@dataclass(frozen=True)
class Task:
    """Data, objective and devices of a training run.

    ``batches(skip)`` iterates from batch number ``skip``; ``settings.accumulation`` batches make one step,
    and a batch may have no rows. ``validate()`` returns metrics by name. Each of several ``processes``
    receives the same batches and computes its rows of them.
    """

    objective: Objective
    batches: Callable[[int], Iterator[Batch]]
    validate: Callable[[], dict[str, float]]
    device: str = "cpu"
    processes: Processes = ALONE


@dataclass(frozen=True)
class _Training:
    """The objects of one training run that every step reads or changes."""

    model: nn.Module
    task: Task
    hook: RankHook
    settings: TrainSettings
    optimizer: torch.optim.Optimizer
    progress: Progress


def train(
    model: nn.Module, task: Task, hook: RankHook, settings: TrainSettings, folder: Path, emit: Emit
) -> Progress:
    """Train ``model`` in place for ``settings.steps`` optimizer steps; keep its best validated parameters.

    ``folder`` holds checkpoints and the best weights; training continues from a checkpoint there. Raises
    :class:`Diverged` if the loss or a gradient is not finite or the smoothed loss runs away,
    :class:`TrainError` if the model has no trainable parameter.
    """
    if not trainable(model):
        raise TrainError("the model has no trainable parameter; attach adapters first")
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = named_adamw(model, settings.learning_rate, settings.weight_decay)

    def report(sentence: str) -> None:
        emit(
            {
                "event": "damaged_checkpoint",
                "tags": {"damaged_checkpoint": sentence[:500]},
                "message": sentence,
            }
        )

    progress = restore_checkpoint(folder, model, optimizer, hook, task.processes, report)
    state = _Training(model, task, hook, settings, optimizer, progress)
    if progress.step:
        emit({"event": "resumed", "step": progress.step})
    task.processes.agree(list(trainable(model).values()))
    batches = task.batches(progress.step * settings.accumulation)
    scaling = Scaling(optimizer, task.device, settings.loss_scale, progress)
    passes = Passes(
        task.objective,
        task.device,
        settings.micro_tokens,
        scaling,
        emit,
        task.processes,
        graphs_for(task.objective, task.device, hook, task.processes),
    )
    model.train()
    while progress.step < settings.steps:
        logs = _step(state, passes, scaling, batches)
        _watch(progress, logs)
        _after(state, logs, folder, emit)
    if progress.best_step:
        load_weights(model, best_weights(folder, progress))
    if task.processes.first:
        drop_old(folder, progress, keep=1)
    return progress


def _step(state: _Training, passes: Passes, scaling: Scaling, batches: Iterator[Batch]) -> dict[str, float]:
    """Do one optimizer step and return its metrics."""
    hook, settings, optimizer, progress = state.hook, state.settings, state.optimizer, state.progress
    speed = Throughput()
    progress.step += 1
    rate = settings.rate(progress.step)
    with speed:
        step_batches = [next(batches) for _ in range(settings.accumulation)]
        loss = passes.gradient(state.model, step_batches, progress)
        speed.tokens += sum(int(batch["attention_mask"].sum()) for batch in step_batches)
        penalty = _add_penalty(hook, scaling)
        grad_norm = scaling.clip(settings.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate
        figures = scaling.step(progress, grad_norm)
        hook.after_step(progress.step)
        follow(state.model, optimizer, hook)
        optimizer.zero_grad(set_to_none=True)
    progress.tokens += speed.tokens
    progress.seconds += speed.seconds
    logs = {"train/loss": float(loss), "train/lr": rate, **figures}
    return logs if penalty is None else {**logs, "train/reg": penalty}


def _add_penalty(hook: RankHook, scaling: Scaling) -> float | None:
    penalty: Tensor | None = hook.penalty()
    if penalty is None:
        return None
    scaling.backward(penalty)
    return float(penalty.detach())


def _watch(progress: Progress, logs: dict[str, float]) -> None:
    """Raise :class:`Diverged` if loss or gradient norm is not finite or the smoothed loss runs away."""
    loss, grad_norm = logs["train/loss"], logs["train/grad_norm"]
    if not math.isfinite(loss):
        raise Diverged(progress.step, f"the loss is {loss}")
    if not math.isfinite(grad_norm):
        raise Diverged(progress.step, f"the gradient norm is {grad_norm}")
    before = progress.smooth_loss
    progress.smooth_loss = loss if before is None else _SMOOTH * before + (1 - _SMOOTH) * loss
    progress.lowest_loss = min(progress.smooth_loss, progress.lowest_loss or math.inf)
    if progress.smooth_loss > progress.lowest_loss + max(_RUNAWAY, 0.5 * progress.lowest_loss):
        raise Diverged(
            progress.step,
            f"the smoothed loss rose from {progress.lowest_loss:.3f} to {progress.smooth_loss:.3f}",
        )


def _after(state: _Training, logs: dict[str, float], folder: Path, emit: Emit) -> None:
    """Log, validate, keep the best weights and write a checkpoint, each when due."""
    model, task, hook = state.model, state.task, state.hook
    settings, progress = state.settings, state.progress
    step, last = progress.step, progress.step == settings.steps
    if step == 1 or last or step % settings.log_every == 0:
        ranks = hook.ranks()
        pace = {
            "steps": settings.steps,
            "seconds": progress.seconds,
            "tok_s": progress.tokens / progress.seconds,
        }
        emit(
            {
                "event": "train",
                "step": step,
                **pace,
                "metrics": {**logs, "train/rank": float(sum(ranks.values()))},
            }
        )
        emit({"event": "ranks", "step": step, "ranks": ranks})
    if last or step % settings.eval_every == 0:
        metrics = task.validate()
        emit(
            {
                "event": "validation",
                "step": step,
                "metrics": {f"val/{name}": value for name, value in metrics.items()},
            }
        )
        if hook.settled(step):
            _keep_best(model, task, folder, progress, metrics)
            if last and progress.best_score is None:
                value = metrics[task.objective.metric]
                raise Diverged(step, f"no validation was finite; the last {task.objective.metric} is {value}")
    if last or step % settings.checkpoint_every == 0:
        save_checkpoint(folder, model, state.optimizer, hook, progress, task.processes)
        emit({"event": "checkpoint", "step": step})


def _keep_best(
    model: nn.Module, task: Task, folder: Path, progress: Progress, metrics: dict[str, float]
) -> None:
    value = metrics[task.objective.metric]
    if not math.isfinite(value):  # no later score is greater than NaN
        return
    score = value if task.objective.higher_is_better else -value
    if progress.best_score is None or score > progress.best_score:
        progress.best_score, progress.best_step = score, progress.step
        progress.history = metrics
        if task.processes.first:
            save_weights(model, best_weights(folder, progress))
