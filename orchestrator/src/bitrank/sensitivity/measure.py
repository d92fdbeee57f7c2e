"""Measure a model once on a sample of its task: errors per format, repair by rank, and gradient moments.

The tables are cached under a hash of the model's files, the task's text and the measuring code. Only a head
without stored weights is trained: it is fitted to frozen features first, because the gradients of a random
head carry no information about the task.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from bitrank_data import IGNORED, Batch, build_once, cache_dir, is_built
from bitrank_quant import check_quantizable, parse_format
from bitrank_quant.sensitivity import Replay, measure_sensitivities
from bitrank_trainer import (
    choose_device,
    peak_memory_mib,
    release_memory,
)

from bitrank.sensitivity.cache_key import key_parts
from bitrank.sensitivity.calibration import calibration, calibration_task, one_thread_per_operation
from bitrank.sensitivity.tables import Tables, read_tables, write_tables
from bitrank.spec.inputs import check_inputs, source_of
from bitrank.spec.provenance import code_hash
from bitrank.spec.run_spec import RunSpec

# Formats that are measured for every plan, and that a plan chooses from unless others are requested.
# Groups have 8-bit scales (-dq): a quarter of a bit per weight less than 16-bit ones (decision 43).
FORMATS = (
    "int2-g64-dq",
    "int3-g64-dq",
    "int4-g64-dq",
    "int5-g64-dq",
    "int6-g64-dq",
    "nf4-dq",
    "int8",
    "bf16",
)


def measured_formats(requested: Sequence[str], quantizer: str) -> tuple[str, ...]:
    """:data:`FORMATS`, and those of ``requested`` that are not among them.

    Raises the quant package's error for an unknown one, and for one that ``quantizer`` cannot choose codes
    of: measuring it would fail after minutes.
    """
    more = sorted({str(parse_format(text)) for text in requested} - set(FORMATS))
    for text in (*FORMATS, *more):
        check_quantizable(parse_format(text), quantizer)
    return (*FORMATS, *more)


def measure(
    spec: RunSpec,
    on_progress: Callable[[str], None] = lambda _: None,
    formats: tuple[str, ...] = FORMATS,
) -> Tables:
    """The tables for the model and task of ``spec`` in ``formats`` by its quantizer, from the cache when they
    are there. The quantizer gets the input moments of the sweep.

    Raises :class:`UserError` if the task has fewer than two training examples.
    """
    calibration_task(spec)

    def build(folder: Path) -> None:
        tables = _measured(spec, formats, on_progress)
        check_inputs(spec)  # the tables are kept under digests from before files were read
        write_tables(folder, tables)

    return read_tables(build_once(tables_place(spec, formats), build))


def is_measured(spec: RunSpec) -> bool:
    """Return whether :func:`measure` will read cached tables."""
    return is_built(tables_place(spec))


def tables_place(spec: RunSpec, formats: tuple[str, ...] = FORMATS) -> Path:
    """The cache folder of the tables: a hash of the model, the task's text, the settings that change a
    measured number, the formats, the quantizer, and the code that measures.
    """
    source = source_of(spec)
    code = code_hash("bitrank.sensitivity.measure")
    key = hashlib.sha256("\0".join((*key_parts(spec, source), *formats, spec.quantizer, code)).encode())
    return cache_dir() / "measured" / f"{Path(spec.model).name}-{source.name}-{key.hexdigest()[:16]}"


def _measured(spec: RunSpec, formats: Sequence[str], on_progress: Callable[[str], None]) -> Tables:
    started = time.monotonic()

    def swept(matrix: str) -> None:
        # Memory retained between passes fragments over hundreds of them, and would grow.
        release_memory()
        on_progress(matrix)

    device = choose_device(spec.device)
    with one_thread_per_operation(device) as workers:
        ready = calibration(spec)
        replay = Replay(ready.model, ready.many, ready.forward, real=partial(real_positions, device=device))
        parsed = [parse_format(text) for text in formats]
        moments, errors = measure_sensitivities(
            replay, ready.matrices, parsed, spec.quantizer, swept, workers
        )
    return Tables(ready.matrices, moments, errors, replay.base, time.monotonic() - started, peak_memory_mib())


def real_positions(batch: Batch, device: str) -> list[torch.Tensor]:
    """Return boolean (B, T) tensors that are True where ``batch`` has a token, False at padding.

    Labels of another width are those of a decoder of its own, which gets the second tensor.
    """
    masks, labels = [batch["attention_mask"] != 0], batch["labels"]
    if labels.ndim == masks[0].ndim and labels.shape != masks[0].shape:
        masks.append(labels != IGNORED)
    return [torch.from_numpy(mask).to(device) for mask in masks]
