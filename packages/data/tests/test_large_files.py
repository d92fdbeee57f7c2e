"""A large file takes the memory of a small one: texts are read, split, tokenized and batched in parts.

Memory is that of Python's and numpy's allocations, which do not depend on the machine's allocator. Mapped
files are not part of it.
"""

from __future__ import annotations

import gc
import itertools
import json
import mmap
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bitrank_data import Batching, open_task, tokenise, training_batches

SMALL, LARGE = 50, 1000  # rows
CHARACTERS = 4000  # of a text
# Texts and rows that are in memory at once are limited here, so that both files have several such parts.
BATCH, ROWS = 20_000, 8


def write(path: Path, rows: int) -> Path:
    """A file of ``rows`` different long texts with two classes."""
    # Few long words: memory should be that of texts, and not of lists of many tokens.
    texts = [f"film {number} " + "x" * CHARACTERS for number in range(rows)]
    records = [{"text": text, "label": number % 2} for number, text in enumerate(texts)]
    if path.suffix == ".csv":
        lines = ["text,label", *(f"{record['text']},{record['label']}" for record in records)]
        path.write_text("\n".join(lines), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=SMALL // 2)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    else:
        path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


def peak_of(work: Callable[[], object]) -> int:
    """Largest number of bytes allocated at once by ``work``."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def train(path: Path, tokenizer: object) -> None:
    """Open the task, tokenize it, and pass over its training data once."""
    task = tokenise(open_task(str(path)), tokenizer, 16)
    split = task.splits["train"]
    batches = training_batches(split, task.kind, Batching(task.pad_id, 8, 0))
    for _ in itertools.islice(batches, len(split) // 8):
        pass


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_twenty_times_the_rows_take_less_than_twice_the_memory(
    suffix: str, tmp_path: Path, tokenizer: object, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitrank_data.tokens._BATCH_CHARACTERS", BATCH)
    monkeypatch.setattr("bitrank_data.columnar._ROWS", ROWS)
    for name in ("warm", "small"):
        write(tmp_path / f"{name}.{suffix}", SMALL)
    large = write(tmp_path / f"large.{suffix}", LARGE)
    train(tmp_path / f"warm.{suffix}", tokenizer)  # imports and caches of libraries
    few = peak_of(lambda: train(tmp_path / f"small.{suffix}", tokenizer))
    many = peak_of(lambda: train(large, tokenizer))
    assert many < 2 * few
    assert many < LARGE * CHARACTERS / 5


def test_tokens_are_mapped_from_their_file(tmp_path: Path, tokenizer: object, cache: Path) -> None:
    task = tokenise(open_task(str(write(tmp_path / "x.jsonl", SMALL))), tokenizer, 16)
    for split in task.splits.values():
        base = split.tokens
        while getattr(base, "base", None) is not None:
            base = base.base
        assert isinstance(getattr(base, "obj", base), mmap.mmap)
