"""Checkpoints in safetensors and JSON from which training continues with the same numbers.

A checkpoint is a folder named after its step. The writer fills a temporary folder, flushes it to the disk and
renames it, so an interrupted write never leaves a partial checkpoint. The previous checkpoint is kept.
``digest.json`` holds the sha256 of each file and of the best weights: a checkpoint whose content differs
(power cut, bad disk, edit) is never restored, and training continues from the previous one or from step 0.
With several processes, the first one writes after it has gathered the random states of all. The rest of the
state is equal in every process, so a run can resume with another number of processes.
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
    """State of training after ``step`` optimizer steps.

    ``scaling`` is the state of the loss scale, ``skipped`` the number of steps that it skipped.
    ``micro_tokens`` bounds the padded tokens of one pass after an out-of-memory error; None means no such
    error.
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


_KEPT = 2  # number of checkpoints: the newest, and its predecessor in case the newest is damaged
_DIGEST = "digest.json"


def best_weights(folder: Path, progress: Progress) -> Path:
    """Path of the weights with the best validation score."""
    return folder / f"best-{progress.best_step:08d}.safetensors"


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the trainable parameters of ``model`` to ``path``: atomic replace, flushed to the disk."""
    making = path.with_suffix(".tmp")
    try:
        save_file({name: p.detach().contiguous() for name, p in trainable(model).items()}, making)
        _flush(making)
        making.replace(path)
    finally:
        making.unlink(missing_ok=True)  # after a failed write: a full disk needs the space
    _flush(path.parent)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load parameters saved by :func:`save_weights` into ``model``, in place.

    The file is read, not memory-mapped: the buffer reuses memory that training returned to the allocator,
    whereas a process at its memory limit has no address space left for a mapping.
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
    """Write the checkpoint of ``progress.step`` under ``folder`` and delete outdated ones.

    Collective: every process calls it, and only the first one writes.
    """
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
    try:
        _fill(making, folder, model, optimizer, hook, progress, random)
        shutil.rmtree(place, ignore_errors=True)
        making.rename(place)
    finally:
        shutil.rmtree(making, ignore_errors=True)  # after a failed write: a full disk needs the space
    _flush(folder)
    drop_old(folder, progress)


def _fill(
    making: Path,
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    hook: RankHook,
    progress: Progress,
    random: dict[str, Tensor],
) -> None:
    """Write the files of a checkpoint into ``making`` and flush them; best weights are in ``folder``."""
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


def drop_old(folder: Path, progress: Progress, keep: int = _KEPT) -> None:
    """Delete all but the newest ``keep`` checkpoints, and best weights that none of these refers to.

    Checkpoints of later steps than ``progress`` are deleted too: training went back behind them because they
    are damaged.
    """
    places = sorted(folder.glob("step-*"))
    reached = [place for place in places if place.name <= f"step-{progress.step:08d}"]
    kept = reached[-keep:]
    for old in places:
        if old not in kept:
            shutil.rmtree(old)
    needed = {best_weights(folder, progress).name}
    for place in kept:
        needed |= set(_digests(place))
    for path in folder.glob("best-*.safetensors"):
        if path.name not in needed:
            path.unlink()


def _flush(path: Path) -> None:
    """Wait until ``path`` (a file, or the entries of a folder) is on the disk.

    ``bitrank_data`` and ``bitrank_analysis`` have such a function too: packages import no sibling.

    Folders are skipped on Windows, which cannot open them and flushes their entries itself.
    """
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    """Digest of a file. The orchestrator has its own copy in a module that does not import torch."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digests(place: Path) -> dict[str, str]:
    """File name → sha256 of the files of checkpoint ``place``; empty if the list is missing or damaged."""
    try:
        listed = json.loads((place / _DIGEST).read_text())
        return {str(name): str(digest) for name, digest in listed.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _damage(place: Path) -> str | None:
    """Description of the damage to checkpoint ``place``; None if all digests match."""
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
    """Newest undamaged checkpoint; ``report`` receives one sentence if a newer one is damaged."""
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


def restore_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    hook: RankHook,
    processes: Processes = ALONE,
    report: Callable[[str], None] = lambda _: None,
) -> Progress:
    """Restore the newest undamaged checkpoint under ``folder``; return its progress.

    Model, optimizer, hook and random states are restored in place. Without an undamaged checkpoint, the
    result is a new :class:`Progress`. ``report`` receives one sentence if a checkpoint is damaged.
    """
    place = _newest_whole(folder, report)
    if place is None:
        _restore_random({}, processes.rank)
        return Progress()
    tensors = load_file(place / "state.safetensors")
    saved = json.loads((place / "progress.json").read_text())
    held = {key: value.to(_device(model)) for key, value in _part(tensors, "hook").items()}
    # before the parameters: the hook may replace them by smaller ones of the saved shapes
    hook.restore(held, saved["hook"])
    follow(model, optimizer, hook)
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(tensors[f"model:{name}"])
    _restore_optimizer(model, optimizer, _part(tensors, "optimizer"))
    _restore_random(tensors, processes.rank)
    return Progress(**saved["progress"])


def _restore_random(tensors: dict[str, Tensor], rank: int) -> None:
    """Restore the random states of this process.

    A rank without saved states gets a seed that depends on the rank, so that dropout masks differ between
    processes.
    """
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
        # The fused optimizer keeps its step counter on the parameter's device too.
        optimizer.state[parameters[name]][kind] = value.to(parameters[name].device)


def _part(tensors: dict[str, Tensor], kind: str) -> dict[str, Any]:
    return {key.partition(":")[2]: value for key, value in tensors.items() if key.startswith(f"{kind}:")}
