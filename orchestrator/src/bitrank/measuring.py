"""Measure a model on a little of its task, once: what every matrix loses in every format, what rank repairs, what rank learns.

The tables are kept in the cache under a hash of the model's files, the task's text and the code that measured
them. Nothing is trained but a head that has no weights yet: its gradients would say nothing about the task, so
it is fitted to frozen features first.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bitrank_data import Batch, TokenisedTask, build_once, cache_dir, evaluation_batches, open_task
from bitrank_quant import WeightMatrix, apply_precision, float_format, parse_format, weight_matrices
from bitrank_quant.sensitivity import FormatErrors, Judged, Moments, Replay, measure_errors, measure_moments
from bitrank_trainer import (
    DTYPES,
    choose_device,
    choose_dtype,
    keep_memory,
    narrow_last_block,
    peak_memory_mib,
    pin_threads,
    release_memory,
)
from safetensors.torch import load_file, save_file
from torch import nn

from bitrank.errors import UserError
from bitrank.heads import fit_head, judged
from bitrank.inputs import check_inputs, model_digest
from bitrank.material import tokenised
from bitrank.models import folder_of, open_model, weights_fingerprint
from bitrank.provenance import code_hash
from bitrank.specs import RunSpec

FORMATS = ("int2-g64", "int3-g64", "int4-g64", "nf4-dq", "int8", "bf16")
SEQUENCES = {"classification": 256, "language-modelling": 8}  # for the moments
_TRIED = {"classification": 64, "language-modelling": 1}  # of these, for what each matrix and format adds: a pass for every one
_JOINT = {"classification": 64, "language-modelling": 2}  # of these, for what a whole plan adds: few passes, and every error counts in each
_BATCH_TOKENS = {"classification": 1024, "language-modelling": 512}
_GRAPH_TOKENS = {"classification": 512, "language-modelling": 128}  # of a batch whose graph is kept: a graph grows with it, tables do not
_HEAD_SEQUENCES = 1024


@dataclass(frozen=True)
class Tables:
    """What was measured: matrices of the model, their moments and errors by name, ``base`` the loss in nats, and what it took."""

    matrices: list[WeightMatrix]
    moments: dict[str, Moments]
    errors: dict[str, dict[str, FormatErrors]]
    base: float
    seconds: float
    peak_mib: float


def measure(spec: RunSpec, told: Callable[[str], None] = lambda _: None) -> Tables:
    """The tables for the model and task of ``spec``, from the cache when they are there.

    Raises :class:`UserError` when the task has fewer than two training examples to measure on.
    """
    _task(spec)

    def build(folder: Path) -> None:
        tables = _measured(spec, told)
        check_inputs(spec)  # the tables are kept under digests from before files were read
        _write(folder, tables)

    return _read(build_once(tables_place(spec), build))


def is_measured(spec: RunSpec) -> bool:
    """Whether :func:`measure` will only read."""
    return tables_place(spec).is_dir()


def tables_place(spec: RunSpec) -> Path:
    """Where the tables lie: under a hash of the model's files, the task's text and the code that measures."""
    source = open_task(spec.task, spec.data)
    code = code_hash("bitrank.measuring")
    length = f"{spec.max_length}" if spec.special_tokens else f"{spec.max_length} without special tokens"
    told_by = (_model_of(spec), source.fingerprint(), length, *FORMATS, code)
    key = hashlib.sha256("\0".join(told_by).encode())
    return cache_dir() / "measured" / f"{Path(spec.model).name}-{source.name}-{key.hexdigest()[:16]}"


def _model_of(spec: RunSpec) -> str:
    """The content of the model."""
    folder_of(spec.model)  # fetches a model from the hub, whose commit is known then
    return model_digest(spec.model) or weights_fingerprint(spec.model)


def calibration_batches(task: TokenisedTask, count: int, offset: int = 0, tokens: int | None = None, of: int | None = None) -> list[Batch]:
    """``count`` training sequences after the first ``offset`` of a fixed shuffle, in batches of similar length, ``tokens`` in each or as
    many as a pass without a graph carries well. With ``of`` they are the longest among so many: one alone must not be a text's last words.
    """
    train = task.splits["train"]
    chosen = np.random.default_rng(0).permutation(len(train))[offset : offset + (of or count)]
    chosen = chosen[np.argsort(-train.lengths_N[chosen], kind="stable")][:count] if of else chosen
    return list(evaluation_batches(train.select(np.sort(chosen)), task.kind, task.pad_id, tokens or _BATCH_TOKENS[task.kind]))


@contextmanager
def whole_machine() -> Iterator[None]:
    """One thread a core, whatever the run's own number: tables are shared by runs, so they must not depend on the run that asked first.
    And freed memory is kept from pass to pass."""
    before = torch.get_num_threads()
    pin_threads()
    keep_memory()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        release_memory()


@dataclass(frozen=True)
class Calibration:
    """A model ready to be measured, and what to measure it on: ``many`` sequences in small batches for moments, ``few`` for what a change
    of one matrix adds, ``joint`` for what a whole plan does. ``matrices`` are those that a file had weights for; the others are fitted."""

    model: nn.Module
    judged: Judged
    matrices: list[WeightMatrix]
    many: list[Batch]
    few: list[Batch]
    joint: list[Batch]


def calibration(spec: RunSpec) -> Calibration:
    """The whole model of ``spec``, frozen, and calibration data of its task. Its matrices are held in 16 bits where their file does,
    whatever is computed in. Raises as :func:`measure` does."""
    task = _task(spec)
    device = choose_device(spec.device)
    dtype = DTYPES[choose_dtype(device) if spec.dtype == "auto" else spec.dtype]
    loaded = open_model(spec, task.classes, device, dtype)
    matrices = [m for m in weight_matrices(loaded.model) if m.name not in loaded.fresh]
    bits = {m.name: _held(loaded.filed(m.name), dtype) for m in matrices if m.tied_to is None}
    apply_precision(loaded.model, bits, compute_dtype=dtype, device=device, fill=loaded.fill)
    loaded.fill_rest()
    model = loaded.model.eval().requires_grad_(False)
    count = min(SEQUENCES[task.kind], len(task.splits["train"]) // 2)
    if loaded.new_modules:  # a head that the checkpoint brings is measured as it is
        fit_head(model, loaded.fresh, spec.kind, calibration_batches(task, _HEAD_SEQUENCES, offset=count), device)
        release_memory()
    many = calibration_batches(task, count, tokens=_GRAPH_TOKENS[task.kind])
    whole = min(count, _JOINT[task.kind])
    joint = calibration_batches(task, whole)
    few = calibration_batches(task, min(count, _TRIED[task.kind]), of=whole)
    return Calibration(model, judged(spec.kind, device), matrices, many, few, joint)


def _held(filed: torch.dtype, computed: torch.dtype) -> str:
    """The format to hold a matrix in: its file's where that has 16 bits, else what is computed in: a run has no more."""
    return str(float_format(filed if filed.itemsize == 2 < computed.itemsize else computed))


def _task(spec: RunSpec) -> TokenisedTask:
    task = tokenised(spec)
    if len(task.splits["train"]) < 2:
        raise UserError(f"{spec.task} has {len(task.splits['train'])} training example: measuring needs two or more")
    return task


def _measured(spec: RunSpec, told: Callable[[str], None]) -> Tables:
    started = time.monotonic()

    def swept(matrix: str) -> None:
        release_memory()  # what is kept from pass to pass falls to pieces over hundreds of them, and would grow
        told(matrix)

    device = choose_device(spec.device)
    with whole_machine():
        ready = calibration(spec)
        replay = Replay(ready.model, ready.many, ready.judged, real=partial(real_positions, device=device))
        moments = measure_moments(replay, ready.matrices, swept)
        narrow_last_block(ready.model)  # from here on only what the model answers counts
        replay = Replay(ready.model, ready.few, ready.judged)
        errors = measure_errors(replay, ready.matrices, [parse_format(text) for text in FORMATS], moments, told=swept)
    return Tables(ready.matrices, moments, errors, replay.base, time.monotonic() - started, peak_memory_mib())


def real_positions(batch: Batch, device: str) -> torch.Tensor:
    """Which positions (B, T) of ``batch`` hold tokens and not padding."""
    return torch.from_numpy(batch["attention_mask"]).bool().to(device)


def _write(folder: Path, tables: Tables) -> None:
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, Any] = {"base": tables.base, "seconds": tables.seconds, "peak_mib": tables.peak_mib}
    plain["matrices"] = [asdict(matrix) for matrix in tables.matrices]
    plain["moments"] = {name: _split(f"moments:{name}", moments, tensors) for name, moments in tables.moments.items()}
    plain["errors"] = {
        name: {fmt: _split(f"errors:{name}:{fmt}", errors, tensors) for fmt, errors in by_format.items()}
        for name, by_format in tables.errors.items()
    }
    save_file(tensors, folder / "tables.safetensors")
    (folder / "tables.json").write_text(json.dumps(plain))


def _split(key: str, value: Moments | FormatErrors, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The numbers of a dataclass; its tensors go into ``tensors`` under ``key:field``."""
    numbers = {}
    for name, part in vars(value).items():
        if isinstance(part, torch.Tensor):
            tensors[f"{key}:{name}"] = part.contiguous()
        else:
            numbers[name] = part
    return numbers


def _read(place: Path) -> Tables:
    plain = json.loads((place / "tables.json").read_text())
    tensors: dict[str, dict[str, Any]] = {}
    for key, tensor in load_file(place / "tables.safetensors").items():
        owner, _, name = key.rpartition(":")
        tensors.setdefault(owner, {})[name] = tensor
    matrices = [WeightMatrix(**{**m, "shape": tuple(m["shape"])}) for m in plain["matrices"]]
    moments = {name: Moments(**numbers, **tensors[f"moments:{name}"]) for name, numbers in plain["moments"].items()}
    errors = {
        name: {fmt: FormatErrors(**numbers, **tensors[f"errors:{name}:{fmt}"]) for fmt, numbers in by_format.items()}
        for name, by_format in plain["errors"].items()
    }
    return Tables(matrices, moments, errors, plain["base"], plain["seconds"], plain["peak_mib"])
