"""The spec of a run as a typed value.

A spec contains everything that determines the numbers of a run. Its id is a hash of the spec: runs with equal
ids are equal, so a finished run is not repeated. Data, models and plans enter the id by content and not by
path (see :mod:`bitrank.spec.inputs`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le, MaxLen
from bitrank_data import CLASSIFICATION, FileOptions, is_path, write_atomically

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
    Rate,
    Seed,
    Sequences,
    Text,
    Workers,
    one_of,
)
from bitrank.spec.inits import INITS
from bitrank.spec.inputs import commit_of, is_content

DTYPE_NAMES = ("auto", "bf16", "fp16", "fp32")
DIGESTS = ("data_digest", "model_digest")  # fields that identify content
FILE_OPTIONS = ("text_column", "label_column", "test_file")  # those of bitrank_data.FileOptions
TUNED = ("rank", "init_r", "target_r", "shrink")  # fields that change the rank rule of a config
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
    kind: Annotated[Text, About("the kind of task, one that its examples fit; follows from the task")] = (
        CLASSIFICATION
    )
    arm: Annotated[
        dict[str, Any], About("the rules for formats and ranks as plain data; follow from config or plan")
    ] = field(default_factory=dict)
    plan: Annotated[Text | None, About("path of a plan file that replaces the config")] = None
    data: Annotated[
        Text | None, About("local folder with the data of a hub task (default: from the hub)")
    ] = None
    text_column: Annotated[
        Text | None,
        About("text column of your own file, or two names a,b for pairs (default: detected by name)"),
    ] = None
    label_column: Annotated[
        Text | None, About("label column of your own file (default: detected by name)")
    ] = None
    test_file: Annotated[
        Text | None,
        About("your own file with the test split (default: split off by hash, or found in the folder)"),
    ] = None
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
    learning_rate: Annotated[Rate, About("peak learning rate of AdamW")] = 2e-4
    warmup: Annotated[Fraction, About("share of the steps in which the learning rate increases from 0")] = 0.1
    weight_decay: Annotated[NotNegative, About("decoupled weight decay of AdamW")] = 0.0
    clip: Annotated[Positive, About("maximum norm of the gradient; a larger gradient is scaled down")] = 1.0
    dropout: Annotated[
        Fraction | None, About("dropout in all layers of the model (default: the model's own)")
    ] = None
    adapter_dropout: Annotated[
        Fraction | None, About("dropout of the inputs of adapters, in PEFT's slower layers (default: none)")
    ] = None
    adapter_scale: Annotated[Positive, About("scale s of an adapter of rank 8: W + s · B A")] = 2.0
    scale_policy: Annotated[
        Text,
        OneOf(scale_policy_names, always=("alpha",)),
        About("how the scale of an adapter of another rank follows from s"),
    ] = "alpha"
    rank: Annotated[
        Rank | None, About("rank of all adapters, of arms with one rank (default: the arm's own)")
    ] = None
    init_r: Annotated[Rank | None, About("AdaLoRA's first rank (default: the arm's own)")] = None
    target_r: Annotated[Rank | None, About("AdaLoRA's last mean rank (default: the arm's own)")] = None
    max_length: Annotated[Length, About("longest sequence; longer texts are cut or split", "tokens")] = 128
    special_tokens: Annotated[
        bool, About("whether the tokenizer adds its own tokens to a text (BOS, [CLS], [SEP])")
    ] = True
    test_windows: Annotated[
        Count | None, About("part of each document in the test (default: all)", "windows of max_length")
    ] = None
    validation_windows: Annotated[
        Count | None, About("part of each document in validation (default: all)", "windows of max_length")
    ] = None
    tested: Annotated[
        bool,
        About(
            "evaluate the test split before and after training; false: validation only, as in the runs of a "
            "study that choose a learning rate"
        ),
    ] = True
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
        OneOf(quantizer_names, always=("rtn", "search")),
        About(
            "chooses codes and scales of low-bit matrices. All but rounding (rtn) reduce the error at the "
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
        Workers | None,
        About("threads of a CPU (default: OMP_NUM_THREADS, or the cores of the process)"),
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
            "initial adapters: zero, the quantization error (of weights, weighted by Fisher information, or "
            "of outputs), or a part of each matrix"
        ),
    ] = "default"
    init_rounds: Annotated[
        Annotated[int, Ge(1), Le(1000)],
        About("maximum alternating rounds of loftq, lq-lora and qera", "rounds"),
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
        return {key: getattr(self, key) for key in TUNED if getattr(self, key) not in (None, False)}

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
        """Fields that only locate content that another field identifies, and those that are not given.

        Options that are not given do not enter the id, so that ids from before they existed stay the same.
        """
        left_out = {key for key in (*DIGESTS, *FILE_OPTIONS, "adapter_dropout") if getattr(self, key) is None}
        if self.tested:
            left_out.add("tested")
        if self.data_digest is not None:
            left_out.add("data")
        if is_content(self.data_digest) and self.reads_file:
            left_out |= {"task", "test_file"}
        if is_content(self.model_digest):
            left_out.add("model")
        if self.plan is not None and self.arm:
            left_out.add("plan")
        return left_out

    @property
    def model_source(self) -> str:
        """The model as it is loaded: a hub id with the commit in the spec (``id@commit``), else ``model``."""
        commit = commit_of(self.model_digest)
        return f"{self.model}@{commit}" if commit else self.model

    @property
    def file_options(self) -> FileOptions:
        """How the user's own file is read."""
        return FileOptions(self.text_column, self.label_column, self.test_file)

    @property
    def reads_file(self) -> bool:
        """Whether the task is a user's own file."""
        return is_path(self.task)

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


def read_spec(path: Path) -> RunSpec:
    data = json.loads(path.read_text())
    # Before the field existed, all ranks had one scale.
    return RunSpec(**{"scale_policy": "constant", **data})


def write_spec(spec: RunSpec, path: Path) -> None:
    write_atomically(path, json.dumps(asdict(spec), indent=1, sort_keys=True))
