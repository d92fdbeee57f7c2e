"""All that is needed to continue exactly, in safetensors and JSON, whole or not at all.

A checkpoint is a folder named after its step, written under another name and renamed when it is complete; only then is the
one before it removed. A kill at any moment leaves at least the last complete one. Of several processes the first writes, when all
have handed in their random state; everything else is the same in each of them, so another number of processes can continue.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn

from bitrank_trainer.hooks import RankHook
from bitrank_trainer.optimizer import follow, trainable
from bitrank_trainer.processes import ALONE, Processes
from bitrank_trainer.randomness import random_states, restore_random_states


@dataclass
class Progress:
    """Where training stands after ``step`` optimizer steps.

    ``scaling`` is the state of the loss scale and ``skipped`` the steps that it left out; ``micro_tokens`` bounds the passes since
    memory ran out.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_score: float | None = None
    smooth_loss: float | None = None
    lowest_loss: float | None = None
    history: dict[str, float] = field(default_factory=dict)
    skipped: int = 0
    scaling: dict[str, float] = field(default_factory=dict)
    micro_tokens: int | None = None


def save_weights(model: nn.Module, path: Path) -> None:
    """The trainable parameters of ``model`` at ``path``, written whole."""
    making = path.with_suffix(".tmp")
    save_file({name: p.detach().contiguous() for name, p in trainable(model).items()}, making)
    making.replace(path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Put parameters saved by :func:`save_weights` back, in place.

    Read into memory that training has given back to the allocator, not mapped: a process at its limit has no address space left to map.
    """
    saved = load(path.read_bytes())
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(saved[name])


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, hook: RankHook, progress: Progress, processes: Processes = ALONE
) -> None:
    """Write the checkpoint of ``progress.step`` under ``folder`` and drop those before it. Every process calls this; the first writes."""
    each = processes.gather(random_states(_device(model)))
    random = {f"rng{rank}:{device}": state for rank, states in enumerate(each) for device, state in states.items()}
    if processes.first:
        _write(folder, model, optimizer, hook, progress, random)
    processes.wait()


def _write(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, hook: RankHook, progress: Progress, random: dict[str, Tensor]
) -> None:
    place, making = folder / f"step-{progress.step:08d}", folder / ".making"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    hook_tensors, hook_text = hook.state()
    tensors = {f"model:{name}": p.detach() for name, p in trainable(model).items()}
    tensors |= {f"optimizer:{key}": value for key, value in _optimizer_tensors(model, optimizer).items()}
    tensors |= {f"hook:{key}": value for key, value in hook_tensors.items()}
    tensors |= random
    save_file({key: value.contiguous() for key, value in tensors.items()}, making / "state.safetensors")
    (making / "progress.json").write_text(json.dumps({"progress": vars(progress), "hook": hook_text}))
    shutil.rmtree(place, ignore_errors=True)
    making.rename(place)
    for old in folder.glob("step-*"):
        if old != place:
            shutil.rmtree(old)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, hook: RankHook, processes: Processes = ALONE
) -> Progress:
    """Restore the newest checkpoint under ``folder`` into everything given; a fresh :class:`Progress` when there is none."""
    places = sorted(folder.glob("step-*"))
    if not places:
        _restore_random({}, processes.rank)
        return Progress()
    tensors = load_file(places[-1] / "state.safetensors")
    saved = json.loads((places[-1] / "progress.json").read_text())
    held = {key: value.to(_device(model)) for key, value in _part(tensors, "hook").items()}
    hook.restore(held, saved["hook"])  # first: it may cut parameters to the shapes that were saved
    follow(model, optimizer, hook)
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(tensors[f"model:{name}"])
    _restore_optimizer(model, optimizer, _part(tensors, "optimizer"))
    _restore_random(tensors, processes.rank)
    return Progress(**saved["progress"])


def _restore_random(tensors: dict[str, Tensor], rank: int) -> None:
    """The random states of this process: what they were, or else a stream of its own, so that no two processes drop out alike."""
    if own := _part(tensors, f"rng{rank}"):
        restore_random_states(own)
    elif rank:
        torch.manual_seed(torch.initial_seed() + rank)


def _device(model: nn.Module) -> str:
    return next(iter(trainable(model).values())).device.type


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {f"{key}:{name}": value for name, parameter in trainable(model).items() for key, value in optimizer.state[parameter].items()}


def _restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = trainable(model)
    for key, value in tensors.items():
        kind, _, name = key.partition(":")
        # The fused optimizer counts its steps on the parameter's device too.
        optimizer.state[parameters[name]][kind] = value.to(parameters[name].device)


def _part(tensors: dict[str, Tensor], kind: str) -> dict[str, Any]:
    return {key.partition(":")[2]: value for key, value in tensors.items() if key.startswith(f"{kind}:")}
