"""A run as a typed value, and the matrix of runs as a list of them.

A spec holds everything that decides the numbers of a run. Its id is the hash of all of it; the same id is the
same run, so a finished one is not run again. Data, models and plans count by their content: paths are in the
spec and not in its id (see :mod:`bitrank.spec.inputs`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bitrank_data import open_task, write_atomically

from bitrank.errors import UserError, unknown
from bitrank.spec.configs import find_config
from bitrank.spec.inits import INITS
from bitrank.spec.inputs import data_digest, is_content, located, model_digest
from bitrank.spec.plan_file import read_plan
from bitrank.spec.profiles import Profile


@dataclass(frozen=True)
class RunSpec:
    """One run. Sizes are in sequences, lengths in tokens, ``*_every`` in optimizer steps.

    ``steps`` or ``epochs`` says how long to train. An optimizer step takes ``accumulation`` batches of
    ``batch_size`` sequences and minimises the mean over all their sequences (or predicted tokens): 2 × 4 is
    the step that 8 × 1 is. With ``accumulation`` 0 a step is one batch on every device; a CPU that trains by
    epochs computes it in two halves, to save memory, which changes nothing but rounding. ``dropout``
    None keeps the model's own; ``arm`` is the config as plain data; ``rank``, ``init_r`` and ``target_r`` replace the arm's own;
    ``special_tokens`` False leaves out what the tokenizer adds to a text (BOS, [CLS], [SEP]);
    ``adapter_scale`` is α/r, the same for every rank and arm; ``memory_limit`` bounds the
    process in bytes by cutting batches into smaller passes; ``fused`` False takes the plain, slower products and pads nothing beyond the
    longest; ``init`` is one of
    :data:`INITS`, with ``init_rounds`` alternating rounds at most; ``shrink`` removes the ranks that AdaLoRA pruned at the freeze;
    ``mps_safe`` bounds every tensor as Metal does, on any device. ``processes`` share every
    batch of ``batch_size`` sequences out among themselves, one GPU each; with ``shard`` the frozen 16-bit base too.
    ``task``, ``data``, ``model`` and ``plan`` locate what a run reads; ``data_digest`` and ``model_digest``
    say which content it is.
    """

    config: str
    task: str
    model: str
    seed: int = 0
    profile: str = "laptop"
    kind: str = "classification"
    arm: dict[str, Any] = field(default_factory=dict)
    plan: str | None = None
    data: str | None = None
    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 8
    accumulation: int = 0
    learning_rate: float = 2e-4
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    dropout: float | None = None
    adapter_scale: float = 2.0
    rank: int | None = None
    init_r: int | None = None
    target_r: int | None = None
    max_length: int = 128
    special_tokens: bool = True
    test_windows: int | None = None
    validation_windows: int | None = None
    log_every: int = 50
    eval_every: int = 500
    checkpoint_every: int = 500
    quant_backend: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    memory_limit: int | None = None
    fused: bool = True
    init: str = "default"
    init_rounds: int = 1
    shrink: bool = False
    mps_safe: bool = False
    processes: int = 1
    shard: bool = False
    data_digest: str | None = None
    model_digest: str | None = None

    @property
    def tuned(self) -> dict[str, int]:
        """Fields of the arm's rank rule that this run sets otherwise."""
        return {key: getattr(self, key) for key in _TUNED if getattr(self, key) not in (None, False)}

    @property
    def spec_id(self) -> str:
        """Twelve hex digits: the hash of the whole spec, with the content of files in place of their paths.

        Where no digest is known (specs of before digests were kept, a hub that was never asked) the names
        alone count.
        """
        counted = {key: value for key, value in asdict(self).items() if key not in self._locators}
        return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def _locators(self) -> set[str]:
        """The fields that say only where content is that other fields describe."""
        left_out = {key for key in _DIGESTS if getattr(self, key) is None}
        if self.data_digest is not None:
            left_out.add("data")
        if is_content(self.data_digest) and self.reads_file:
            left_out.add("task")
        if is_content(self.model_digest):
            left_out.add("model")
        if self.plan is not None and self.arm:
            left_out.add("plan")
        return left_out

    @property
    def reads_file(self) -> bool:
        """Whether the task is a user's own file."""
        return _is_path(self.task)

    @property
    def task_name(self) -> str:
        """The task as it is shown: a user's file by its stem."""
        return Path(self.task).stem if self.reads_file else self.task

    @property
    def run_name(self) -> str:
        return f"{self.config} {self.task_name} s{self.seed}"

    @property
    def cell(self) -> str:
        """What to average seeds over."""
        return f"{self.config} · {self.task_name}"


def _is_path(task: str) -> bool:
    """Whether a task is given as a file, as :func:`~bitrank_data.open_task` tells files from names."""
    return "/" in task or bool(Path(task).suffix)


# Fields that `--set key=value` may not touch: they have their own words, or follow from others.
_DIGESTS = ("data_digest", "model_digest")
_FIXED = {"config", "task", "profile", "kind", "arm", *_DIGESTS}
SETTABLE = tuple(f.name for f in fields(RunSpec) if f.name not in _FIXED)
_POSITIVE = ("steps", "epochs", "batch_size", "max_length", "test_windows", "validation_windows", "log_every", "eval_every",
             "checkpoint_every", "threads", "processes", "memory_limit", "rank", "init_r", "target_r", "init_rounds")  # fmt: skip
_TUNED = ("rank", "init_r", "target_r", "shrink")
_ABOVE_ZERO = ("learning_rate", "clip", "adapter_scale")
_FRACTIONS = ("warmup", "dropout")
_CHOICES = {"dtype": ("auto", "bf16", "fp16", "fp32"), "init": INITS}


def make_spec(
    profile: Profile, config: str, task: str, overrides: Mapping[str, Any] | None = None
) -> RunSpec:
    """The spec of one run: the profile's fields for this kind of task, then ``overrides``.

    Raises :class:`UserError` (or the data package's error) for an unknown config, task or key, or a value out of range.
    """
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    for key in given:
        if key not in SETTABLE:
            raise unknown("key", key, SETTABLE)
    task = located(task) if _is_path(task) else task
    given |= {key: located(given[key]) for key in ("data", "plan", "model") if key in given}
    source = open_task(task, given.get("data"))
    plan = given.get("plan")
    name = Path(plan).stem if plan else config
    planned = {"init": read_plan(Path(plan)).get("init", "default")} if plan else {}
    chosen = {**profile.fields_for(source.kind, task), **planned, **given}
    if "steps" in given and "epochs" not in given:
        chosen["epochs"] = None
    if "epochs" in given and "steps" not in given:
        chosen["steps"] = None
    tuned = {key: given[key] for key in _TUNED if given.get(key, False) is not False}
    arm = find_config(config, plan, tuned).as_data()
    chosen["data_digest"] = data_digest(task, chosen.get("data"))
    chosen["model_digest"] = model_digest(chosen["model"])
    return check(RunSpec(config=name, task=task, profile=profile.name, kind=source.kind, arm=arm, **chosen))


def check(spec: RunSpec) -> RunSpec:
    """``spec`` itself. Raises :class:`UserError` when a number is out of range or the length of training is not given once."""
    for name in _POSITIVE:
        value = getattr(spec, name)
        if value is not None and value < 1:
            raise UserError(f"{name} must be 1 or more, got {value}")
    if small := [name for name in _ABOVE_ZERO if getattr(spec, name) <= 0]:
        raise UserError(f"{small[0]} must be above 0, got {getattr(spec, small[0])}")
    for name in _FRACTIONS:
        if not 0 <= (getattr(spec, name) or 0) < 1:
            raise UserError(f"{name} must be at least 0 and below 1, got {getattr(spec, name)}")
    for name, known in _CHOICES.items():
        if getattr(spec, name) not in known:
            raise unknown(name, getattr(spec, name), known)
    if spec.seed < 0 or spec.accumulation < 0 or spec.weight_decay < 0:
        raise UserError(
            f"seed, accumulation and weight_decay must not be negative, got {spec.seed}, {spec.accumulation}, {spec.weight_decay}"
        )
    _check_processes(spec)
    if (spec.steps is None) == (spec.epochs is None):
        raise UserError(f"give steps or epochs, not both; got steps={spec.steps} and epochs={spec.epochs}")
    return spec


def _check_processes(spec: RunSpec) -> None:
    if spec.processes > spec.batch_size:
        raise UserError(
            f"{spec.processes} processes share the {spec.batch_size} sequences of a batch out, and some would have none; give "
            f"{spec.batch_size} processes or fewer, or a larger batch_size"
        )
    if spec.shard and spec.processes == 1:
        raise UserError(
            "shard keeps a part of the base in each of several processes: give processes=2 or more, got 1"
        )


def matrix(
    profile: Profile, configs: list[str], tasks: list[str], seeds: list[int], overrides: Mapping[str, Any]
) -> list[RunSpec]:
    """Every run of the study: task by task, seed by seed, config by config. A run named twice is there once."""
    cells = [(task, config) for task in tasks for config in configs]
    made = {(task, config): make_spec(profile, config, task, overrides) for task, config in cells}
    specs = [replace(made[task, config], seed=seed) for task in tasks for seed in seeds for config in configs]
    return list({spec.spec_id: spec for spec in specs}.values())


def read_spec(path: Path) -> RunSpec:
    return RunSpec(**json.loads(path.read_text()))


def write_spec(spec: RunSpec, path: Path) -> None:
    write_atomically(path, json.dumps(asdict(spec), indent=1, sort_keys=True))
