"""Forecast a run before training: stored bytes, peak memory of the process, and seconds.

Bytes of weights, adapters, gradients and optimizer states are computed from shapes and are exact. Activations
are counted in a dry run on the ``meta`` device. The overhead of libraries was measured once; the constants
below state it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from bitrank_adapters import check_ranks
from bitrank_quant import WeightMatrix, block_matrices, weight_matrices

from bitrank.forecast.dry_run import Stage, Unplanned, dry_run, unplanned_model
from bitrank.forecast.import_memory import import_memory
from bitrank.forecast.stored_size import Storage, base_bytes, mask_bytes
from bitrank.forecast.training_time import TrainingTime, training_time
from bitrank.forecast.workload import Workload, heaviest, workload
from bitrank.process.compute import Compute
from bitrank.process.environment import kept_shapes
from bitrank.process.tcmalloc import find_tcmalloc
from bitrank.spec.configs import find_config
from bitrank.spec.run_spec import RunSpec

_MIB = 2**20
# Measured on MiniLM and SmolLM2 with the environment that the executor gives a run (mallinfo2 and
# /proc/self/status between steps).
# Pages of libraries that the first passes load: RssFile is 128 MiB after imports and 149 MiB in training.
CODE_PAGES = 21 * _MIB
# Compiled matrix products. Only 16-bit products are compiled: MKL multiplies fp32 matrices without compiling.
# PyTorch caches 1,024 of them (LRU_CACHE_CAPACITY) at a quarter of a MiB each: the heap grew by 230 MiB over
# about 900 shapes with oneDNN's own cache nearly disabled. oneDNN's cache, with a capacity of 128 in that
# measurement, took 36 MiB more.
PRODUCT, PRODUCTS = _MIB // 4, 1024
PRIMITIVE = 3 * _MIB // 10
# The heap grows beyond the live bytes, as a share of a pass's peak. In glibc a freed aligned block need not
# fit the next block of the same size. With one batch shape, the heap grew by about 0.6 (0.40 to 0.59 over six
# shortened runs of SmolLM2, 0.45 to 0.81 over twelve others; the spread is chance). With varying lengths it
# grew by 0.9: a whole run of B-FP on the sentences grew from 573 to 1,381 MiB, and this share predicts 1,368.
# tcmalloc has size classes: 0.02 to 0.15 with one shape, 0.13 to 0.3 with many, over twelve shortened runs
# and six whole ones in fp32. tcmalloc was not measured with compiled bf16 products, which are allocated
# between its blocks.
SLACK_SAME, SLACK_VARIED = 0.6, 0.9
SLACK_SAME_TCMALLOC, SLACK_VARIED_TCMALLOC = 0.05, 0.2


@dataclass(frozen=True)
class Forecast:
    """Bytes of a training process by part.

    ``peak`` is the sum of all parts, or the memory needed for loading if that is larger.

        stored       base model: codes, scales, unquantized tensors; equal to the count in the built model
        adapters     adapter weights and trained copies of heads
        gradients    of all trained parameters, fp32
        optimizer    AdamW's two moments, and AdaLoRA's importance averages if ranks adapt
        activations  maximum of live bytes in a training step, an evaluation or a generation of texts,
                     without weights
        imports      the process before it has a model: libraries, tokenizer and tokens; 0 for an
                     accelerator, which has its own memory
        overhead     compiled products, library pages, growth of the heap beyond the live bytes, and masks

    ``trainable`` counts parameters. ``seconds`` is the duration of the whole run, and ``basis`` describes the
    data or measurement that it is derived from.
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
    """Forecast a run of ``spec`` with the given formats and initial ranks.

    Only ``config.json`` and text lengths are read, no weights. ``store`` holds finished runs; the speed of
    similar runs predicts the duration better than timed matrix products. Raises
    :class:`~bitrank.errors.UserError` or a package's own error if model, task and plan do not fit together.
    """
    compute = Compute.of(spec)
    device, dtype = compute.device, compute.dtype
    work = workload(spec, device)
    unplanned = unplanned_model(spec, work.classes, compute)
    blocks = block_matrices(unplanned.model)
    rule = find_config(spec.config, spec.plan, spec.tuned).rank
    shapes = {m.name: m.shape for m in blocks}
    check_ranks(dict(ranks), shapes, unplanned.trained_modules, others_train=rule.trains_scales)
    took = training_time(spec, work, unplanned.model, device, dtype, store)
    return _of_plan(spec, compute, unplanned, precision, ranks, work, took)


def _of_plan(
    spec: RunSpec,
    compute: Compute,
    unplanned: Unplanned,
    precision: Mapping[str, str],
    ranks: Mapping[str, int],
    work: Workload,
    took: TrainingTime,
) -> Forecast:
    device, dtype = compute.device, compute.dtype
    model, trained_modules = unplanned.model, unplanned.trained_modules
    matrices = weight_matrices(model)
    stored = base_bytes(
        model,
        precision,
        matrices,
        Storage(spec.quant_backend, device, dtype, spec.quantizer != RunSpec.quantizer),
        trained_modules,
    )
    adapted = _adapted(spec, model, trained_modules, precision, ranks, {m.name: m for m in matrices})
    largest = max(math.prod(m.shape) for m in matrices)
    stage = dry_run(spec, compute, unplanned, precision, ranks, work.steps)
    activations, overhead = _passes(stage, work, kept_shapes(spec) if dtype != torch.float32 else None)
    imports = 0
    if device == "cpu":
        before = import_memory(spec)
        imports = before.imports + before.data
    else:
        # The constants describe the CPU heap. An accelerator has a different allocator, for which the
        # overhead has not been measured.
        overhead = 0
    overhead += mask_bytes(model)
    training = stored + adapted.nbytes + adapted.gradients + adapted.optimizer + activations + overhead
    loading = stored + mask_bytes(model) + 4 * largest
    return Forecast(
        stored, adapted.nbytes, adapted.gradients, adapted.optimizer, activations, imports, overhead,
        imports + max(training, loading), adapted.numbers, took.seconds, took.basis,
    )  # fmt: skip


def _passes(stage: Stage, work: Workload, kept: int | None) -> tuple[int, int]:
    """Return activation bytes and overhead bytes.

    ``kept`` is the capacity of oneDNN's shape cache; None if no product is compiled.
    """
    steps = [stage.step(shape) for shape in heaviest(work.train)]
    evaluated = [stage.evaluate(shape) for shape in heaviest(work.evaluated)]
    generated = [stage.generate(shape, work.new_tokens) for shape in heaviest(work.prompts)]
    batches = ((steps, work.train), (evaluated, work.evaluated), (generated, work.prompts))
    products = sum(passes[0].products * len(shapes) for passes, shapes in batches if shapes) if kept else 0
    compiled = PRODUCT * min(products, PRODUCTS) + PRIMITIVE * min(products, kept or 0)
    activations = max(done.peak for done in (*steps, *evaluated, *generated))
    return activations, CODE_PAGES + compiled + int(_slack(work) * activations)


def _slack(work: Workload) -> float:
    """Return the growth of the heap beyond the live bytes, as a share of a pass's peak."""
    same, varied = (
        (SLACK_SAME, SLACK_VARIED)
        if find_tcmalloc() is None
        else (SLACK_SAME_TCMALLOC, SLACK_VARIED_TCMALLOC)
    )
    return same if len(work.train) == 1 else varied


@dataclass(frozen=True)
class _Adapted:
    """``nbytes`` of adapters and trained heads, bytes for training them, and the trained parameter count."""

    nbytes: int
    gradients: int
    optimizer: int
    numbers: int


def _adapted(
    spec: RunSpec,
    model: Any,
    trained_modules: list[str],
    precision: Mapping[str, str],
    ranks: Mapping[str, int],
    matrices: Mapping[str, WeightMatrix],
) -> _Adapted:
    """Count the bytes of adapters, of fp32 copies of trained scales, and of trained heads.

    AdaLoRA trains a singular value per rank, and holds an untrained rank count per matrix and three averages
    per low-rank parameter.
    """
    rule = find_config(spec.config, spec.plan, spec.tuned).rank
    adaptive = rule.triplets
    low_rank = sum(
        rule.trained_numbers(matrices[name].shape, rank) + rank * adaptive for name, rank in ranks.items()
    )
    scales = sum(
        rule.trained_in_format(matrices[name].shape, precision[name]) for name in ranks if name in precision
    )
    heads = sum(p.numel() for name in trained_modules for p in model.get_submodule(name).parameters())
    numbers = low_rank + scales + heads
    return _Adapted(
        4 * (numbers + adaptive * len(ranks)), 4 * numbers, 8 * numbers + adaptive * 12 * low_rank, numbers
    )
