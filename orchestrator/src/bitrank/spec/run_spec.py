"""The spec of a run as a typed value.

A spec contains everything that determines the numbers of a run. Its id is a hash of the spec: runs with equal
ids are equal, so a finished run is not repeated. Data, models and plans enter the id by content and not by
path (see :mod:`bitrank.spec.inputs`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le, MaxLen
from bitrank_data import CLASSIFICATION, HUB_TASKS, open_task, write_atomically

from bitrank.errors import UserError, unknown
from bitrank.spec.configs import Arm, PlannedArm, find_arm
from bitrank.spec.fields import (
    TEXT_LENGTH,
    About,
    Bytes,
    Count,
    Fraction,
    Length,
    NoNul,
    NotNegative,
    OneOf,
    Positive,
    Rank,
    Seed,
    Sequences,
    Text,
    Workers,
    one_of,
)
from bitrank.spec.inits import INITS, PLANNED_INITS
from bitrank.spec.inputs import data_digest, is_content, is_hub, located, model_digest
from bitrank.spec.plan_file import valid_plan
from bitrank.spec.profiles import Profile

DTYPE_NAMES = ("auto", "bf16", "fp16", "fp32")
# Those of bitrank_trainer.DEVICES, which imports torch; a test compares them.
DEVICE_NAMES = ("auto", "cuda", "mps", "cpu")


def quant_backend_names() -> list[str]:
    """Valid names for ``quant_backend``."""
    from bitrank_quant import OVERRIDES

    return list(OVERRIDES)


def scale_policy_names() -> list[str]:
    """The names that ``scale_policy`` may have. Importing the registry imports torch."""
    from bitrank_adapters import SCALE_POLICIES

    return list(SCALE_POLICIES)


def quantizer_names() -> list[str]:
    """The allowed values of ``quantizer``. Their registry imports torch as well."""
    from bitrank_quant import QUANTIZERS

    return list(QUANTIZERS)


@dataclass(frozen=True)
class RunSpec:
    """One run: every field that can change its numbers, with validation and meaning.

    Exactly one of ``steps`` and ``epochs`` sets the length of training. ``task``, ``data``, ``model`` and
    ``plan`` locate content; ``data_digest``, ``model_digest`` and ``arm`` identify it.
    """

    config: Annotated[Text, About("the arm's name, or the name of the plan file")]
    task: Annotated[str, MaxLen(TEXT_LENGTH), NoNul(), About("a task's name, or the path of a user's file")]
    model: Annotated[Text, About("an embedded model, a hub id, or a local folder")]
    seed: Annotated[
        Seed, About("seed of all random numbers: order of batches, new heads, adapters, dropout")
    ] = 0
    profile: Annotated[Text, About("the profile with the defaults of the fields; names the experiment")] = (
        "laptop"
    )
    kind: Annotated[Text, About("the kind of task; follows from the task")] = CLASSIFICATION
    arm: Annotated[
        dict[str, Any], About("the rules for formats and ranks as plain data; follow from config or plan")
    ] = field(default_factory=dict)
    plan: Annotated[Text | None, About("path of a plan file that replaces the config")] = None
    data: Annotated[Text | None, About("local folder with the data of a hub task; None: the hub")] = None
    steps: Annotated[Count | None, About("length of training", "optimizer steps")] = None
    epochs: Annotated[
        Annotated[int, Ge(1), Le(10**6)] | None, About("length of training", "passes over the training data")
    ] = None
    batch_size: Annotated[
        Sequences, About("size of a batch; a step takes accumulation × batch_size", "sequences")
    ] = 8
    accumulation: Annotated[
        Annotated[int, Ge(0), Le(2**20)],
        About(
            "batches of one optimizer step, which minimizes the mean over all their sequences "
            "(or predicted tokens): 2 × 4 gives the same step as 8 × 1. 0: one batch on every device; a CPU "
            "that trains by epochs computes it in two halves to save memory, which changes only rounding",
            "batches",
        ),
    ] = 0
    learning_rate: Annotated[Positive, About("peak learning rate of AdamW")] = 2e-4
    warmup: Annotated[Fraction, About("share of the steps in which the learning rate increases from 0")] = 0.1
    weight_decay: Annotated[NotNegative, About("decoupled weight decay of AdamW")] = 0.0
    clip: Annotated[Positive, About("maximum norm of the gradient; a larger gradient is scaled down")] = 1.0
    dropout: Annotated[
        Fraction | None, About("dropout in all layers of the model; None: the model's own")
    ] = None
    adapter_scale: Annotated[Positive, About("scale s of an adapter of rank 8: W + s · B A")] = 2.0
    scale_policy: Annotated[
        Text,
        OneOf(scale_policy_names, always=("alpha",)),
        About(
            "scale of other ranks: s ∝ 1/r (alpha), bounded at 2 s (alpha-capped), ∝ 1/√r (rslora), constant"
        ),
    ] = "alpha"
    rank: Annotated[
        Rank | None, About("rank of all adapters, of arms with one rank; None: the arm's own")
    ] = None
    init_r: Annotated[Rank | None, About("AdaLoRA's first rank; None: the arm's own")] = None
    target_r: Annotated[Rank | None, About("AdaLoRA's last mean rank; None: the arm's own")] = None
    max_length: Annotated[Length, About("longest sequence; longer texts are cut or split", "tokens")] = 128
    special_tokens: Annotated[
        bool, About("whether the tokenizer adds its own tokens to a text (BOS, [CLS], [SEP])")
    ] = True
    test_windows: Annotated[
        Count | None, About("part of each document in the test; None: all", "windows of max_length")
    ] = None
    validation_windows: Annotated[
        Count | None, About("part of each document in validation; None: all", "windows of max_length")
    ] = None
    log_every: Annotated[Count, About("interval between records of the training loss", "optimizer steps")] = (
        50
    )
    eval_every: Annotated[Count, About("interval between validations", "optimizer steps")] = 500
    checkpoint_every: Annotated[Count, About("interval between checkpoints", "optimizer steps")] = 500
    quant_backend: Annotated[
        Text,
        OneOf(quant_backend_names, always=("auto",)),
        About("replaces the arm's low-bit formats and the library that stores them; auto: the arm's formats"),
    ] = "auto"
    quantizer: Annotated[
        Text,
        OneOf(quantizer_names, always=("rtn",)),
        About(
            "chooses codes and scales of low-bit matrices: rtn rounds; search and gptq reduce the error at "
            "the "
            "inputs of each layer, gathered from training data once per model and task"
        ),
    ] = "rtn"
    device: Annotated[
        Text,
        one_of(DEVICE_NAMES),
        About("torch's name of the device; auto: an accelerator if there is one"),
    ] = "auto"
    dtype: Annotated[
        Text,
        one_of(DTYPE_NAMES),
        About("dtype of computation and of unquantized weights; auto: a fast one for the device"),
    ] = "auto"
    threads: Annotated[
        Workers | None, About("threads of a CPU; None: all cores that the process may use")
    ] = None
    memory_limit: Annotated[
        Bytes | None, About("memory limit of the process; batches are split into smaller passes", "bytes")
    ] = None
    fused: Annotated[
        bool,
        About("fused layers, and batches padded to fast widths; false: standard layers, no such padding"),
    ] = True
    init: Annotated[
        Text,
        one_of(INITS),
        About(
            "initial adapters: zero, or the quantization error, unweighted or weighted by Fisher information"
        ),
    ] = "default"
    init_rounds: Annotated[
        Annotated[int, Ge(1), Le(1000)], About("maximum alternating rounds of loftq and lq-lora", "rounds")
    ] = 1
    shrink: Annotated[bool, About("remove pruned ranks from memory when AdaLoRA stops pruning")] = False
    mps_safe: Annotated[bool, About("no tensor over 2³² bytes, as Metal needs, on any device")] = False
    processes: Annotated[Workers, About("processes that share every batch of batch_size, one GPU each")] = 1
    shard: Annotated[bool, About("each process stores a shard of the frozen 16-bit base (FSDP)")] = False
    data_digest: Annotated[Text | None, About("digest of the data; follows from task and data")] = None
    model_digest: Annotated[Text | None, About("digest of the model; follows from model")] = None

    @property
    def tuned(self) -> dict[str, int]:
        """Fields of the arm's rank rule that this run overrides."""
        return {key: getattr(self, key) for key in _TUNED if getattr(self, key) not in (None, False)}

    @property
    def plan_request(self) -> dict[str, Any] | None:
        """The request of a planned arm as plain data; None for an arm with rules or a plan file."""
        return self.arm.get("request")

    @property
    def spec_id(self) -> str:
        """Twelve hex digits: a hash of the spec, with the digests of files instead of their paths.

        Without a digest (an old spec, or a hub repository without a known commit) the hash contains the name.
        """
        hashed = {key: value for key, value in asdict(self).items() if key not in self._locators}
        return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def _locators(self) -> set[str]:
        """Fields that only locate content that another field identifies, and digests that are unknown."""
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
    def model_source(self) -> str:
        """The model as it is loaded: a hub id with the commit in the spec (``id@commit``), else ``model``."""
        commit = (self.model_digest or "").partition(":")[2]
        return f"{self.model}@{commit}" if is_hub(self.model_digest) else self.model

    @property
    def reads_file(self) -> bool:
        """Whether the task is a user's own file."""
        return _is_path(self.task)

    @property
    def task_name(self) -> str:
        """Display name of the task; the stem of a user's own file."""
        return Path(self.task).stem if self.reads_file else self.task

    @property
    def run_name(self) -> str:
        return f"{self.config} {self.task_name} s{self.seed}"

    @property
    def cell(self) -> str:
        """Name of the group of runs that differ only in their seed."""
        return f"{self.config} · {self.task_name}"


def _is_path(task: str) -> bool:
    """Whether a task is a file, by the same rule as in :func:`~bitrank_data.open_task`."""
    return "/" in task or bool(Path(task).suffix)


# `--set key=value` cannot set these fields: they have their own options, or follow from other fields.
_DIGESTS = ("data_digest", "model_digest")
_FIXED = {"config", "task", "profile", "kind", "arm", *_DIGESTS}
SETTABLE = tuple(f.name for f in fields(RunSpec) if f.name not in _FIXED)
_TUNED = ("rank", "init_r", "target_r", "shrink")


def make_spec(
    profile: Profile, config: str, task: str, overrides: Mapping[str, Any] | None = None
) -> RunSpec:
    """Make the spec of one run from the profile's defaults for this kind of task and ``overrides``.

    Raises :class:`UserError` (or the data package's error) for an unknown config, task or key, or a value out
    of range.
    """
    from bitrank.spec.validation import validate

    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    for key in given:
        if key not in SETTABLE:
            raise unknown("key", key, SETTABLE)
    # Validate before opening paths: text that cannot be a path would raise an error of the operating system.
    validate(RunSpec, {"config": "-", "model": "-", "task": task, **given})
    task = located(task) if _is_path(task) else task
    given |= {key: located(given[key]) for key in ("data", "plan", "model") if key in given}
    check_data(given.get("data"), [task])
    source = open_task(task, given.get("data"))
    plan = given.get("plan")
    name = Path(plan).stem if plan else config
    planned = _fields_of_plan(Path(plan)) if plan else {}
    tuned = {key: given[key] for key in _TUNED if given.get(key, False) is not False}
    arm = find_arm(config, plan, tuned)
    chosen = {**profile.fields_for(source.kind, task), **planned, **_fields_of_arm(arm), **given}
    if "steps" in given and "epochs" not in given:
        chosen["epochs"] = None
    if "epochs" in given and "steps" not in given:
        chosen["steps"] = None
    _check_planned_init(name, arm, chosen)
    chosen["data_digest"] = data_digest(task, chosen.get("data"))
    chosen["model_digest"] = model_digest(chosen["model"])
    data = arm.as_data()
    return check(RunSpec(config=name, task=task, profile=profile.name, kind=source.kind, arm=data, **chosen))


def _fields_of_arm(arm: Arm) -> dict[str, Any]:
    """Fields of a spec whose defaults the request of a planned arm sets."""
    return {"init": arm.init} if isinstance(arm, PlannedArm) else {}


def _check_planned_init(name: str, arm: Arm, chosen: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` for an initialization whose benefit no planner predicts."""
    init = chosen.get("init", "default")
    if isinstance(arm, PlannedArm) and init in INITS and init not in PLANNED_INITS:
        raise UserError(
            f"{name} is planned for its initialization: expected init={' or '.join(PLANNED_INITS)}, got "
            f"{init}"
        )


def _fields_of_plan(path: Path) -> dict[str, Any]:
    """The fields of a spec whose defaults a plan file sets."""
    data = valid_plan(path)
    return {"init": data.get("init", "default"), "quantizer": data.get("quantizer", "rtn")}


def check(spec: RunSpec) -> RunSpec:
    """Return ``spec``. Raises :class:`UserError` for an invalid value or contradicting fields."""
    # Imported here: a run's own process does not validate, and pydantic would increase its measured memory.
    from bitrank.spec.validation import validate

    validate(RunSpec, vars(spec))
    _check_processes(spec)
    if (spec.steps is None) == (spec.epochs is None):
        raise UserError(f"give steps or epochs, not both; got steps={spec.steps} and epochs={spec.epochs}")
    return spec


def _check_processes(spec: RunSpec) -> None:
    if spec.processes > spec.batch_size:
        raise UserError(
            f"{spec.processes} processes cannot share the {spec.batch_size} sequences of a batch: some would "
            f"have none; give {spec.batch_size} processes or fewer, or a larger batch_size"
        )
    if spec.shard and spec.processes == 1:
        raise UserError("shard splits the base over several processes: expected processes=2 or more, got 1")


def check_data(data: str | None, tasks: list[str]) -> None:
    """Raise :class:`UserError` for a data folder that no task reads: the user expects it to be used."""
    if data is not None and not set(tasks) & set(HUB_TASKS):
        raise UserError(
            f"data={data} is not used by these tasks; it is a local folder for {' or '.join(HUB_TASKS)}. "
            "Remove it, or give your own file as the task"
        )


def read_spec(path: Path) -> RunSpec:
    data = json.loads(path.read_text())
    # Before the field existed, all ranks had one scale.
    return RunSpec(**{"scale_policy": "constant", **data})


def write_spec(spec: RunSpec, path: Path) -> None:
    write_atomically(path, json.dumps(asdict(spec), indent=1, sort_keys=True))
