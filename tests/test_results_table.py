"""``tools/results_table.py`` prints every row of a summary, whatever its task is ranked by."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from bitrank.spec.run_spec import RunSpec
from bitrank.spec.task_kinds import TASK_KINDS
from bitrank.tracking.results_files import write_results

TOOL = Path(__file__).parents[1] / "tools" / "results_table.py"
COSTS = {
    "model/mib": 40.96,
    "model/bits": 4.254,
    "lora/percent": 1.8,
    "lora/rank": 8.0,
    "mem/peak_mib": 1680.2,
    "speed/train_tok_s": 1457.4,
    "time/total_s": 61.0,
}


def rows_of(folder: Path) -> list[str]:
    command = [sys.executable, str(TOOL), str(folder / "experiment_summary.csv")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return printed.splitlines()[2:]


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("classification", "acc 0.501", "**0.833**"),
        ("language-modelling", "ppl 0.50", "**0.83**"),
        ("instruction-following", "completion_ppl 0.50", "**0.83**"),
        ("question-answering", "token_f1 0.501", "**0.833**"),
        ("probing", "p_at_1 0.501", "**0.833**"),
    ],
)
def test_the_row_of_every_kind_of_task_has_its_metric(
    tmp_path: Path, kind: str, before: str, after: str
) -> None:
    key = TASK_KINDS[kind].metric.key
    figures = {f"zero/{key}": 0.5009, f"eval/{key}": 0.8333, **COSTS}
    write_results([(RunSpec("B-Q4", "mine", "tiny-bert", kind=kind), figures, "finished")], tmp_path)
    costs = "41.0 | 4.25 | 1.80 | 8 | 1,680 | 1,457 | 61"
    assert rows_of(tmp_path) == [f"| `mine` | `B-Q4` | {before} | {after} | {costs} |"]


def test_rows_without_a_test_and_of_failed_runs_have_empty_cells(tmp_path: Path) -> None:
    spec = RunSpec("B-Q4", "mine", "tiny-bert")
    write_results([(spec, dict(COSTS), "finished"), (replace(spec, seed=1), {}, "failed")], tmp_path)
    assert rows_of(tmp_path) == [
        "| `mine` | `B-Q4` |  |  | 41.0 | 4.25 | 1.80 | 8 | 1,680 | 1,457 | 61 |",
        "| `mine` | `B-Q4` |  |  |  |  |  |  |  |  |  |",
    ]
