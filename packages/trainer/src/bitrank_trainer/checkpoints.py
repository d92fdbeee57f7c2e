"""All that is needed to continue exactly, in safetensors and JSON, whole or not at all.

A checkpoint is a folder named after its step, written under another name, flushed to the disk and renamed when it is complete. The
one before it is kept. ``digest.json`` holds the sha256 of each file and of the best weights so far: a checkpoint with other content
(a power cut, a bad disk, an edit) is never restored; training continues from the one before it, or from the beginning. Of several
processes the first writes, when all have handed in their random state; everything else is the same in each of them, so another
number of processes can continue.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn

from bitrank_trainer.distributed.data_parallel import ALONE, Processes
from bitrank_trainer.hooks import RankHook
from bitrank_trainer.optimizer import follow, trainable
from bitrank_trainer.rng import random_states, restore_random_states


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


_KEPT = 2  # checkpoints: the newest, and the one before it in case the newest is damaged
_DIGEST = "digest.json"


def best_weights(folder: Path, progress: Progress) -> Path:
    """Where the weights of the best validation so far are kept."""
    return folder / f"best-{progress.best_step:08d}.safetensors"


def save_weights(model: nn.Module, path: Path) -> None:
    """The trainable parameters of ``model`` at ``path``, written whole and flushed to the disk."""
    making = path.with_suffix(".tmp")
    save_file({name: p.detach().contiguous() for name, p in trainable(model).items()}, making)
    _flush(making)
    making.replace(path)
    _flush(path.parent)


def load_weights(model: nn.Module, path: Path) -> None:
    """Put parameters saved by :func:`save_weights` back, in place.

    Read into memory that training has given back to the allocator, not mapped: a process at its limit has no address space left to map.
    """
    saved = load(path.read_bytes())
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(saved[name])


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    hook: RankHook,
    progress: Progress,
    processes: Processes = ALONE,
) -> None:
    """Write the checkpoint of ``progress.step`` under ``folder`` and drop those before it. Every process calls this; the first writes."""
    each = processes.gather(random_states(_device(model)))
    random = {
        f"rng{rank}:{device}": state for rank, states in enumerate(each) for device, state in states.items()
    }
    if processes.first:
        _write(folder, model, optimizer, hook, progress, random)
    processes.wait()


def _write(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    hook: RankHook,
    progress: Progress,
    random: dict[str, Tensor],
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
    files = [making / "state.safetensors", making / "progress.json"]
    if progress.best_step:
        files.append(best_weights(folder, progress))
    (making / _DIGEST).write_text(json.dumps({path.name: _sha256(path) for path in files}))
    for path in (*making.iterdir(), making):
        _flush(path)
    shutil.rmtree(place, ignore_errors=True)
    making.rename(place)
    _flush(folder)
    drop_old(folder, progress)


def drop_old(folder: Path, progress: Progress, keep: int = _KEPT) -> None:
    """Remove all checkpoints under ``folder`` but the newest ``keep``, and best weights that none of these refers to."""
    places = sorted(folder.glob("step-*"))
    for old in places[:-keep]:
        shutil.rmtree(old)
    needed = {best_weights(folder, progress).name}
    for place in places[-keep:]:
        needed |= set(_digests(place))
    for path in folder.glob("best-*.safetensors"):
        if path.name not in needed:
            path.unlink()


def _flush(path: Path) -> None:
    """Wait until ``path``, a file or the names in a folder, is on the disk. Windows cannot open folders and keeps them by itself."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digests(place: Path) -> dict[str, str]:
    """File name → sha256 of everything that the checkpoint ``place`` needs; empty when the list itself is missing or damaged."""
    try:
        listed = json.loads((place / _DIGEST).read_text())
        return {str(name): str(digest) for name, digest in listed.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _damage(place: Path) -> str | None:
    """What is wrong with the checkpoint ``place``, None when it holds what was written."""
    digests = _digests(place)
    if not {"state.safetensors", "progress.json"} <= digests.keys():
        return f"{_DIGEST} is missing or damaged"
    for name, digest in digests.items():
        path = place.parent / name if name.startswith("best-") else place / name
        if not path.is_file():
            return f"{name} is missing"
        if _sha256(path) != digest:
            return f"{name} has other content than was written"
    return None


def _newest_whole(folder: Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that holds what was written. ``report`` gets a sentence when a newer one does not."""
    damaged: list[str] = []
    for place in sorted(folder.glob("step-*"), reverse=True):
        problem = _damage(place)
        if problem is None:
            if damaged:
                report(f"{'; '.join(damaged)}; training continues from {place.name}")
            return place
        damaged.append(f"the checkpoint {place.name} is damaged: {problem}")
    if damaged:
        report(f"{'; '.join(damaged)}; training starts from the beginning")
    return None


def load_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    hook: RankHook,
    processes: Processes = ALONE,
    report: Callable[[str], None] = lambda _: None,
) -> Progress:
    """Restore the newest undamaged checkpoint under ``folder`` into everything given; a new :class:`Progress` when there is none.

    ``report`` is called with a sentence when a checkpoint is damaged.
    """
    place = _newest_whole(folder, report)
    if place is None:
        _restore_random({}, processes.rank)
        return Progress()
    tensors = load_file(place / "state.safetensors")
    saved = json.loads((place / "progress.json").read_text())
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
    return {
        f"{key}:{name}": value
        for name, parameter in trainable(model).items()
        for key, value in optimizer.state[parameter].items()
    }


def _restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    parameters = trainable(model)
    for key, value in tensors.items():
        kind, _, name = key.partition(":")
        # The fused optimizer counts its steps on the parameter's device too.
        optimizer.state[parameters[name]][kind] = value.to(parameters[name].device)


def _part(tensors: dict[str, Tensor], kind: str) -> dict[str, Any]:
    return {key.partition(":")[2]: value for key, value in tensors.items() if key.startswith(f"{kind}:")}
