"""How long a run will take: by the speed of finished runs like it, or else by work and the machine's own products.

*Like it* is the same model and task, on this hardware and device, in the same dtype, with as many threads. Runs of the same config come
before others: how weights are stored makes a step cheaper or dearer, but a forecast for a new plan has no run of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from bitrank_quant import WeightMatrix, block_matrices

from bitrank.forecast.workload import Workload
from bitrank.process.cores import usable_cores
from bitrank.process.hardware import hardware
from bitrank.spec.run_spec import RunSpec
from bitrank.tracking.run_state import StoredRun, read_runs
from bitrank.tracking.sqlite_store import has_store
from bitrank.tracking.store import Store

# The share of this machine's products that runs reach, all products of all blocks counted: bf16 by B-FP on the sentences before their last
# block was narrowed, so a little low; fp32 the middle of five configs on both models when products ran at 180 GFLOP/s, without what a
# classifier's last block is spared. What else a device computes in is taken to be as bf16.
_SHARE, _SHARES = 0.41, {torch.float32: 0.54}
_SETUP = 15.0  # seconds from the start of the process to a model that can train, on the machine of that table
_SIDE, _TRIES, _PATIENCE = 1024, 5, 1.0  # seconds: without instructions for a dtype one product is enough
_FIRST = (
    "query",
    "key",
    "value",
    "q_proj",
    "k_proj",
    "v_proj",
)  # below the first block's nothing is trained: no product for their input


@dataclass(frozen=True)
class TrainingTime:
    """``seconds`` of a whole run, and in words what they rest on."""

    seconds: float
    basis: str


def training_time(
    spec: RunSpec, work: Workload, model: Any, device: str, dtype: torch.dtype, store: str
) -> TrainingTime:
    """The duration of a run of ``spec`` on ``device``; ``model`` is its skeleton without a plan. Times products when no run is like it."""
    if found := _finished(spec, device, dtype, store):
        return _by_runs(spec, work, found)
    speed = _products_per_second(spec.threads, device, dtype)
    blocks, head = block_matrices(model), _head(model)
    flops = work.train_tokens * training_flops(blocks, head) + work.evaluation_tokens * 2 * (
        _weights(blocks) + head
    )
    share = _SHARES.get(dtype, _SHARE)
    basis = f"work per token at {share:.0%} of this machine's matrix products, {speed / 1e9:,.0f} GFLOP/s in {_name(dtype)} measured now"
    return TrainingTime(_SETUP + flops / (share * speed), basis)


def training_flops(blocks: Sequence[WeightMatrix], head: int) -> int:
    """Operations for training on one token: 2 per weight forward, 2 backward for those below which something is trained.

    ``head`` counts the weights of a language model's head. Adapters, attention scores and norms are left out.
    """
    dead = sum(math.prod(m.shape) for m in blocks if m.layer == 0 and m.name.endswith(_FIRST))
    return 2 * (_weights(blocks) + head) + 2 * (_weights(blocks) - dead + head)


def _by_runs(spec: RunSpec, work: Workload, runs: Sequence[StoredRun]) -> TrainingTime:
    """Speeds count real tokens and the work padded ones: with batches of similar length they are within a few percent, and where
    widths are padded to multiples the time is told some tenth too long."""
    same = [run for run in runs if run.tags.get("config") == spec.config]
    runs = same or runs
    train, infer, setup = (
        median(run.figures[key] for run in runs)
        for key in ("speed/train_tok_s", "speed/infer_tok_s", "time/setup_s")
    )
    seconds = setup + work.train_tokens / train + work.evaluation_tokens / infer
    config = spec.config if same else "other configs"
    return TrainingTime(
        seconds,
        f"the speed of {len(runs)} finished run{'s' * (len(runs) > 1)} of {config} with this model and task, here",
    )


def _finished(spec: RunSpec, device: str, dtype: torch.dtype, store: str) -> list[StoredRun]:
    database = Store.parse(store).database
    if database is None or not has_store(database):
        return []
    threads = spec.threads or max(
        1, usable_cores() // spec.processes
    )  # as bitrank_trainer.pin_threads counts
    same = {
        "model": spec.model, "task": spec.task_name, "device": device, "dtype": _name(dtype), "threads": str(threads),
        "hardware": hardware(device),
    }  # fmt: skip
    needed = {"speed/train_tok_s", "speed/infer_tok_s", "time/setup_s"}
    return [
        run
        for run in read_runs(database, f"bitrank-{spec.profile}").values()
        if run.status == "FINISHED" and same.items() <= run.tags.items() and needed <= run.figures.keys()
    ]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _products_per_second(threads: int | None, device: str, dtype: torch.dtype) -> float:
    """Operations a second of the best of a few square products, with the run's threads; the number of threads is put back.

    Of ones: a product takes as long whatever its numbers, and none are drawn that a seed was set for.
    """
    before = torch.get_num_threads()
    square = torch.ones(_SIDE, _SIDE, dtype=dtype, device=device)
    best, begun = math.inf, time.perf_counter()
    try:
        torch.set_num_threads(threads or before)
        for _ in range(_TRIES):
            started = time.perf_counter()
            (square @ square)[0, 0].item()  # an accelerator has to have finished
            best = min(best, time.perf_counter() - started)
            if time.perf_counter() - begun > _PATIENCE:
                break
    finally:
        torch.set_num_threads(before)
    return 2 * _SIDE**3 / best


def _weights(matrices: Sequence[WeightMatrix]) -> int:
    return sum(math.prod(m.shape) for m in matrices)


def _head(model: Any) -> int:
    """Weights of a language model's head; a classifier's is next to nothing."""
    head = model.get_output_embeddings()
    return 0 if head is None else int(head.weight.numel())
