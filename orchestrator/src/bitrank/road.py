"""THE ROAD: one run from its spec to its record, top to bottom. Read this first."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from bitrank_adapters import check_ranks
from bitrank_data import Batch, TokenisedTask, TokenSplit, evaluation_batches, open_task, spread_windows, tokenise, training_batches
from bitrank_quant import apply_precision, block_matrices, stored_bytes, weight_matrices
from bitrank_trainer import DTYPES, OBJECTIVES, Task, choose_device, choose_dtype, evaluate, peak_memory_mib, pin_threads, train, trainable

from bitrank.configs import find_config
from bitrank.models import load_model, load_tokenizer
from bitrank.record import Record, save_adapter
from bitrank.schedule import settings_for
from bitrank.specs import RunSpec


def travel(spec: RunSpec, folder: Path, record: Record) -> None:
    """Do the run that ``spec`` describes, keep what it leaves in ``folder``, and tell ``record`` everything on the way."""
    started = time.perf_counter()
    device = choose_device(spec.device)
    dtype = DTYPES[choose_dtype(device) if spec.dtype == "auto" else spec.dtype]
    record.machine(device, dtype, pin_threads(spec.threads), peak_memory_mib())

    record.phase("loading")
    task = tokenise(open_task(spec.task, spec.data), load_tokenizer(spec.model), spec.max_length)
    validation, test = _capped(task, "validation", spec.validation_windows), _capped(task, "test", spec.test_windows)
    loaded = load_model(spec.model, spec.kind, len(task.classes), device=device, dtype=dtype, dropout=spec.dropout, seed=spec.seed)

    config = find_config(spec.config, spec.plan)
    free = [m for m in weight_matrices(loaded.model) if m.tied_to is None and m.name not in loaded.fresh]
    blocks = block_matrices(loaded.model)
    bits = config.precision.bits(free)
    ranks = config.rank.ranks(blocks)
    check_ranks(ranks, {m.name: m.shape for m in blocks})
    record.plan(bits, ranks, free)

    applied = apply_precision(loaded.model, bits, quant_backend=spec.quant_backend, compute_dtype=dtype)
    settings = settings_for(spec, len(task.splits["train"]), device)
    model, hook = config.rank.attach(
        loaded.model, ranks, total_steps=settings.steps, scale=spec.adapter_scale, heads=loaded.fresh, seed=spec.seed
    )
    model.to(device)
    record.model(applied, stored_bytes(model).total, trainable(model), loaded.parameters)

    objective = OBJECTIVES[spec.kind]
    record.phase("zero-shot")
    setup_seconds = time.perf_counter() - started
    record.zero_shot(lambda: evaluate(model, _batches(task, test), objective, device))

    def train_batches(skip: int) -> Iterator[Batch]:
        return training_batches(task.splits["train"], task.kind, task.pad_id, spec.batch_size, spec.seed, skip)

    def validate() -> dict[str, float]:
        return evaluate(model, _batches(task, validation), objective, device).metrics

    record.phase("training")
    progress = train(model, Task(objective, train_batches, validate, device), hook, settings, folder / "checkpoint", record.emit)

    record.phase("testing")
    final = evaluate(model, _batches(task, test), objective, device)
    save_adapter(model, folder / "adapter")
    record.finish(final, test, progress, hook.ranks(), device, setup_seconds)


def _capped(task: TokenisedTask, split: str, windows: int | None) -> TokenSplit:
    """The split to judge on; of long documents only some windows when the profile says so."""
    part = task.splits[split]
    return part if windows is None or task.kind == "classification" else spread_windows(part, windows)


def _batches(task: TokenisedTask, split: TokenSplit) -> Iterator[Batch]:
    return evaluation_batches(split, task.kind, task.pad_id, batch_tokens=1024)
