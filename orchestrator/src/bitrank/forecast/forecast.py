"""What a plan will take, before anything is trained: bytes part by part, the peak of the process, and seconds.

Stored bytes, adapters, gradients and optimizer are arithmetic on shapes and exact. Activations are counted in a rehearsal on the
``meta`` device. What libraries take on top is measured once and stated below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from bitrank_adapters import check_ranks
from bitrank_quant import WeightMatrix, block_matrices, weight_matrices

from bitrank.forecast.dry_run import Stage, dry_run, unplanned_model
from bitrank.forecast.import_memory import import_memory
from bitrank.forecast.stored_size import base_bytes
from bitrank.forecast.training_time import TrainingTime, training_time
from bitrank.forecast.workload import Workload, heaviest, workload
from bitrank.process.compute import Compute
from bitrank.process.environment import kept_shapes
from bitrank.process.tcmalloc import find_tcmalloc
from bitrank.spec.configs import find_config
from bitrank.spec.rules import AdaptiveRank
from bitrank.spec.run_spec import RunSpec

_MIB = 2**20
# Measured on MiniLM and SmolLM2 with the environment that the executor gives a run (mallinfo2 and /proc/self/status between steps):
CODE_PAGES = (
    21 * _MIB
)  # pages of libraries that the first passes touch: RssFile 128 MiB after imports, 149 in training
# Compiled products, of 16-bit matrices: MKL multiplies fp32 ones and compiles nothing. PyTorch keeps 1,024 (LRU_CACHE_CAPACITY) at a
# quarter of a MiB each: heap in use grew by 230 MiB over about 900 shapes with oneDNN's own cache nearly off. That cache, of
# 128 then, took 36 MiB more.
PRODUCT, PRODUCTS = _MIB // 4, 1024
PRIMITIVE = 3 * _MIB // 10
# The C library's heap grows past what is alive: in glibc's an aligned block that is freed need not fit the next of the same size. Of one
# shape after another by about six tenths of a pass's peak (0.40 to 0.59 over six cut runs of SmolLM2, 0.45 to 0.81 over twelve others:
# chance). When lengths vary by nine tenths: a whole run of B-FP on the sentences grew from 573 to 1,381 MiB, 1,368 by this share.
# tcmalloc has classes of sizes: 0.02 to 0.15 of one shape after another, 0.13 to 0.3 of many, over twelve cut runs and six whole ones in
# fp32; with bf16 products compiled between its blocks it was not measured.
SLACK_SAME, SLACK_VARIED = 0.6, 0.9
SLACK_SAME_TCMALLOC, SLACK_VARIED_TCMALLOC = 0.05, 0.2


@dataclass(frozen=True)
class Forecast:
    """Bytes of a training process, part by part; ``peak`` is their sum, or what loading takes where that is more.

    stored       the base: codes, scales, everything unquantized; equal to what the built model will count
    adapters     what adapting adds, trained copies of heads included
    gradients    of everything trained, fp32
    optimizer    AdamW's two moments, and the averages of AdaLoRA's importance where ranks adapt
    activations  the most that is alive at once in a training step or an evaluation, weights not counted
    imports      the process before it has a model: libraries, tokenizer and tokens (0 for an accelerator, whose memory is apart)
    overhead     compiled products, pages of libraries, and how far the heap grows past what is alive

    ``trainable`` counts numbers; ``seconds`` is the whole run, and ``basis`` says what that rests on.
    """

    stored: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    imports: int
    overhead: int
    peak: int
    trainable: int
    seconds: float
    basis: str


def forecast(
    spec: RunSpec, precision: Mapping[str, str], ranks: Mapping[str, int], store: str = "runs"
) -> Forecast:
    """The forecast of running ``spec`` with these formats and starting ranks. Reads ``config.json``, lengths of texts, no weight.

    ``store`` is where finished runs are looked for: they tell the speed better than a calibration. Raises
    :class:`~bitrank.errors.UserError` or the packages' own errors when model, task or plan do not fit.
    """
    compute = Compute.of(spec)
    device, dtype = compute.device, compute.dtype
    work = workload(spec, device)
    model, trained_modules = unplanned_model(spec, work.classes, device, dtype)
    blocks = block_matrices(model)
    check_ranks(dict(ranks), {m.name: m.shape for m in blocks})
    took = training_time(spec, work, model, device, dtype, store)
    return _of_plan(spec, precision, ranks, work, model, trained_modules, device, dtype, took)


def _of_plan(
    spec: RunSpec, precision: Mapping[str, str], ranks: Mapping[str, int], work: Workload, model: Any, trained_modules: list[str],
    device: str, dtype: torch.dtype, took: TrainingTime,
) -> Forecast:  # fmt: skip
    matrices = weight_matrices(model)
    stored = base_bytes(
        model,
        precision,
        matrices,
        quant_backend=spec.quant_backend,
        device=device,
        dtype=dtype,
        trained_modules=trained_modules,
    )
    adapted = _adapted(spec, model, trained_modules, ranks, {m.name: m for m in matrices})
    largest = max(math.prod(m.shape) for m in matrices)
    stage = dry_run(spec, model, trained_modules, precision, ranks, work.steps, device, dtype)
    activations, overhead = _passes(stage, work, kept_shapes(spec) if dtype != torch.float32 else None)
    imports = 0
    if device == "cpu":
        before = import_memory(spec)
        imports = before.imports + before.data
    else:
        overhead = 0  # an accelerator's allocator is another; unverified
    training = stored + adapted.nbytes + adapted.gradients + adapted.optimizer + activations + overhead
    loading = stored + 4 * largest
    return Forecast(
        stored, adapted.nbytes, adapted.gradients, adapted.optimizer, activations, imports, overhead,
        imports + max(training, loading), adapted.numbers, took.seconds, took.basis,
    )  # fmt: skip


def _passes(stage: Stage, work: Workload, kept: int | None) -> tuple[int, int]:
    """Activations, and what libraries and the heap take on top; ``kept`` are oneDNN's shapes, None where no product is compiled."""
    steps, evaluated = (
        [stage.step(shape) for shape in heaviest(work.train)],
        [stage.evaluate(shape) for shape in heaviest(work.evaluated)],
    )
    products = (
        steps[0].products * len(work.train) + evaluated[0].products * len(work.evaluated) if kept else 0
    )
    compiled = PRODUCT * min(products, PRODUCTS) + PRIMITIVE * min(products, kept or 0)
    activations = max(done.peak for done in (*steps, *evaluated))
    return activations, CODE_PAGES + compiled + int(_slack(work) * activations)


def _slack(work: Workload) -> float:
    """How far the heap grows past what is alive, as a share of a pass's peak."""
    same, varied = (
        (SLACK_SAME, SLACK_VARIED)
        if find_tcmalloc() is None
        else (SLACK_SAME_TCMALLOC, SLACK_VARIED_TCMALLOC)
    )
    return same if len(work.train) == 1 else varied


@dataclass(frozen=True)
class _Adapted:
    """Bytes ``nbytes`` by adapters and trained heads, and of what training them takes; trained ``numbers``."""

    nbytes: int
    gradients: int
    optimizer: int
    numbers: int


def _adapted(
    spec: RunSpec,
    model: Any,
    trained_modules: list[str],
    ranks: Mapping[str, int],
    matrices: Mapping[str, WeightMatrix],
) -> _Adapted:
    """AdaLoRA has a singular value for each rank, an untrained count of ranks for each matrix, and three averages of each number."""
    adaptive = isinstance(find_config(spec.config, spec.plan, spec.tuned).rank, AdaptiveRank)
    low_rank = sum(rank * (sum(matrices[name].shape) + adaptive) for name, rank in ranks.items())
    heads = sum(p.numel() for name in trained_modules for p in model.get_submodule(name).parameters())
    numbers = low_rank + heads
    return _Adapted(
        4 * (numbers + adaptive * len(ranks)), 4 * numbers, 8 * numbers + adaptive * 12 * low_rank, numbers
    )
