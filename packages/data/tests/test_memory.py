"""The memory of reading, tokenizing and batching does not grow with a user's file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

PROGRAM = """
import sys
from bitrank_data import Batching, open_task, tokenise, training_batches
from transformers import PreTrainedTokenizerFast

task = tokenise(open_task(sys.argv[1]), PreTrainedTokenizerFast.from_pretrained(sys.argv[2]), 64)
batches = training_batches(task.splits["train"], task.kind, Batching(task.pad_id, 8, 0))
for _ in range(100):
    next(batches)
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM")))
"""


def peak_mib(path: Path, rows: int, folder: Path) -> int:
    """Peak resident memory of a process that makes batches of a file with ``rows`` texts of 4 KB."""
    text = "the film is good and the plot is bad . " * 100
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            file.write(json.dumps({"text": f"{number} {text}"}) + "\n")
    command = [sys.executable, "-c", PROGRAM, str(path), str(folder)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def test_a_larger_file_takes_a_quarter_of_its_growth_at_most(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    small = peak_mib(tmp_path / "small.jsonl", 500, tmp_path / "tokenizer")
    large = peak_mib(tmp_path / "large.jsonl", 10_000, tmp_path / "tokenizer")
    growth = ((tmp_path / "large.jsonl").stat().st_size - (tmp_path / "small.jsonl").stat().st_size) >> 20
    assert growth > 35
    assert large - small < growth // 4
