"""Predict a run's duration from the speed of similar finished runs, or else from its operation count.

A *similar* run has the same model, task, hardware, device, dtype and number of threads. Runs of the same
config take precedence, because the storage format changes the time of a step. The plan of a forecast is new
and usually has no run of the same config. Without a similar run, the operation count is divided by the speed
of this machine's matrix products.
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
from bitrank_trainer import usable_threads

from bitrank.forecast.workload import Workload
from bitrank.process.hardware import hardware
from bitrank.spec.run_spec import RunSpec
from bitrank.tracking.run_state import StoredRun, read_runs
from bitrank.tracking.sqlite_store import has_store
from bitrank.tracking.store import Store

# The share of the machine's matrix product speed that runs reach, counting all products of all blocks. bf16:
# B-FP on the sentences before the last block was narrowed, so slightly low. fp32: the median of five configs
# on both models when products ran at 180 GFLOP/s, not counting the part of a classifier's last block that is
# skipped. Other dtypes are assumed to equal bf16.
_SHARE, _SHARES = 0.41, {torch.float32: 0.54}
# Seconds from the start of the process until the model can be trained, on the machine of that measurement.
_SETUP = 15.0
# _PATIENCE is in seconds. It ends the measurement after one product on hardware without instructions for the
# dtype.
_SIDE, _TRIES, _PATIENCE = 1024, 5, 1.0
# Nothing below these matrices of the first block is trained, so the gradient of their input is not computed.
_FIRST = (
    "query",
    "key",
    "value",
    "q_proj",
    "k_proj",
    "v_proj",
)


@dataclass(frozen=True)
class TrainingTime:
    """``seconds`` of a whole run, and a description of the ``basis`` of that figure."""

    seconds: float
    basis: str


def training_time(
    spec: RunSpec, work: Workload, model: Any, device: str, dtype: torch.dtype, store: str
) -> TrainingTime:
    """Predict the duration of a run of ``spec`` on ``device``.

    ``model`` is its unquantized model on the ``meta`` device. Matrix products are timed if no finished run is
    similar.
    """
    if found := _finished(spec, device, dtype, store):
        return _by_runs(spec, work, found)
    threads = spec.threads or usable_threads(spec.processes)
    speed = _products_per_second(threads, device, dtype)
    blocks, head = block_matrices(model), _head(model)
    flops = work.train_tokens * training_flops(blocks, head) + work.evaluation_tokens * 2 * (
        _weights(blocks) + head
    )
    share = _SHARES.get(dtype, _SHARE)
    basis = (
        f"work per token at {share:.0%} of this machine's matrix products, {speed / 1e9:,.0f} GFLOP/s "
        f"in {_name(dtype)} measured now"
    )
    return TrainingTime(_SETUP + flops / (share * speed), basis)


def training_flops(blocks: Sequence[WeightMatrix], head: int) -> int:
    """Return the operations for training on one token.

    Each weight costs 2 operations in the forward pass, and 2 in the backward pass if a trained parameter is
    below it. ``head`` is the number of weights of a language model's head. Adapters, attention scores and
    norms are not counted.
    """
    dead = sum(math.prod(m.shape) for m in blocks if m.layer == 0 and m.name.endswith(_FIRST))
    return 2 * (_weights(blocks) + head) + 2 * (_weights(blocks) - dead + head)


def _by_runs(spec: RunSpec, work: Workload, runs: Sequence[StoredRun]) -> TrainingTime:
    """Predict the duration from the speeds of finished ``runs``.

    Speeds count real tokens, the workload counts padded ones. With batches of similar length they differ by a
    few percent; where widths are padded to multiples, the prediction is about a tenth too long.
    """
    same = [run for run in runs if run.tags.get("config") == spec.config]
    runs = same or runs
    train, evaluation, setup = (median(run.figures[key] for run in runs) for key in _NEEDED)
    generating = median(run.figures.get("time/generate_s", 0.0) for run in runs)
    seconds = setup + work.train_tokens / train + work.evaluation_tokens / evaluation + generating
    config = spec.config if same else "other configs"
    return TrainingTime(
        seconds,
        f"the speed of {len(runs)} finished run{'s' * (len(runs) > 1)} of {config} "
        "with this model and task, here",
    )


# Figures of a finished run that a prediction needs.
_NEEDED = ("speed/train_tok_s", "speed/eval_tok_s", "time/setup_s")


def _finished(spec: RunSpec, device: str, dtype: torch.dtype, store: str) -> list[StoredRun]:
    database = Store.parse(store).database
    if database is None or not has_store(database):
        return []
    threads = spec.threads or usable_threads(spec.processes)
    same = {
        "model": spec.model,
        "task": spec.task_name,
        "device": device,
        "dtype": _name(dtype),
        "threads": str(threads),
        "hardware": hardware(device),
    }
    return [
        run
        for run in read_runs(database, f"bitrank-{spec.profile}").values()
        if run.status == "FINISHED" and same.items() <= run.tags.items() and {*_NEEDED} <= run.figures.keys()
    ]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _products_per_second(threads: int, device: str, dtype: torch.dtype) -> float:
    """Return operations per second of the best of a few square matrix products with the run's threads.

    The number of threads is restored. The matrices hold ones: the time does not depend on the values, and no
    numbers are drawn from a seeded generator.
    """
    before = torch.get_num_threads()
    square = torch.ones(_SIDE, _SIDE, dtype=dtype, device=device)
    best, begun = math.inf, time.perf_counter()
    try:
        torch.set_num_threads(threads)
        for _ in range(_TRIES):
            started = time.perf_counter()
            (square @ square)[0, 0].item()  # .item() waits until an accelerator has finished
            best = min(best, time.perf_counter() - started)
            if time.perf_counter() - begun > _PATIENCE:
                break
    finally:
        torch.set_num_threads(before)
    return 2 * _SIDE**3 / best


def _weights(matrices: Sequence[WeightMatrix]) -> int:
    return sum(math.prod(m.shape) for m in matrices)


def _head(model: Any) -> int:
    """Return the number of weights of a language model's head; a classifier's head is negligible."""
    head = model.get_output_embeddings()
    return 0 if head is None else int(head.weight.numel())
