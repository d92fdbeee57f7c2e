"""How long a run will take: by the speed of finished runs of the same model and task, or else by work and the processor's products."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bitrank_quant import WeightMatrix, block_matrices

from bitrank.specs import RunSpec
from bitrank.states import StoredRun, read_runs
from bitrank.store import check_file, store_uri
from bitrank.workload import Workload

# The share of the processor's peak that a run reaches: 41 % for B-FP on the sentences (benchmarks/RESULTS.md, `training`).
_SHARE = 0.41
_SETUP = 15.0  # seconds from the start of the process to a model that can train, on the machine of that table
_SIDE, _TRIES = 1024, 5
_FIRST = ("query", "key", "value", "q_proj", "k_proj", "v_proj")  # below the first block's nothing is trained: no product for their input


@dataclass(frozen=True)
class Duration:
    """``seconds`` of a whole run, and in words what they rest on."""

    seconds: float
    basis: str


def duration(spec: RunSpec, work: Workload, model: Any, dtype: torch.dtype, store: str) -> Duration:
    """The duration of a run of ``spec``, ``model`` being its skeleton without a plan. Times one product when there are no finished runs."""
    if found := _finished(spec, store):
        return _by_runs(work, found)
    speed = _products_per_second(spec.threads, dtype)
    blocks, head = block_matrices(model), _head(model)
    flops = work.train_tokens * training_flops(blocks, head) + work.judged_tokens * 2 * (_weights(blocks) + head)
    basis = f"work per token at {_SHARE:.0%} of this machine's matrix products, {speed / 1e9:,.0f} GFLOP/s measured now"
    return Duration(_SETUP + flops / (_SHARE * speed), basis)


def training_flops(blocks: Sequence[WeightMatrix], head: int) -> int:
    """Operations for training on one token: 2 per weight forward, 2 backward for those below which something is trained.

    ``head`` counts the weights of a language model's head. Adapters, attention scores and norms are left out.
    """
    dead = sum(math.prod(m.shape) for m in blocks if m.layer == 0 and m.name.endswith(_FIRST))
    return 2 * (_weights(blocks) + head) + 2 * (_weights(blocks) - dead + head)


def _by_runs(work: Workload, runs: Sequence[StoredRun]) -> Duration:
    """Speeds count real tokens and the work padded ones: with batches of similar length they are within a few percent."""
    train, judge, setup = (median(run.figures[key] for run in runs) for key in ("speed/train_tok_s", "speed/infer_tok_s", "time/setup_s"))
    seconds = setup + work.train_tokens / train + work.judged_tokens / judge
    return Duration(seconds, f"the speed of {len(runs)} finished run{'s' * (len(runs) > 1)} of this model and task")


def _finished(spec: RunSpec, store: str) -> list[StoredRun]:
    uri = store_uri(store)
    database = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or not database.exists():
        return []
    check_file(database)
    same = {"model": spec.model, "task": spec.task_name}
    needed = {"speed/train_tok_s", "speed/infer_tok_s", "time/setup_s"}
    return [
        run
        for run in read_runs(database, f"bitrank-{spec.profile}").values()
        if run.status == "FINISHED" and same.items() <= run.tags.items() and needed <= run.figures.keys()
    ]


def _products_per_second(threads: int | None, dtype: torch.dtype) -> float:
    """Operations a second of the best of a few square products, with the run's threads; the number of threads is put back."""
    before = torch.get_num_threads()
    left, right = (torch.randn(_SIDE, _SIDE).to(dtype) for _ in range(2))
    best = math.inf
    try:
        torch.set_num_threads(threads or before)
        for _ in range(_TRIES):
            started = time.perf_counter()
            left @ right
            best = min(best, time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
    return 2 * _SIDE**3 / best


def _weights(matrices: Sequence[WeightMatrix]) -> int:
    return sum(math.prod(m.shape) for m in matrices)


def _head(model: Any) -> int:
    """Weights of a language model's head; a classifier's is next to nothing."""
    head = model.get_output_embeddings()
    return 0 if head is None else int(head.weight.numel())
