"""Output of HiGHS to standard output does not reach the caller's."""

from __future__ import annotations

import subprocess
import sys

_PRINTING_SCRIPT = """
import ctypes, sys
from bitrank_planner import Item, Option, Problem, exact
solver, c = sys.modules["bitrank_planner.highs"], ctypes.CDLL(None)
quiet = solver.milp
def loud(*args, **kwargs):
    c.printf(b"debugging\\n")
    return quiet(*args, **kwargs)
solver.milp = loud
print("before")
options = tuple(Option(f"int{bits}", 0, bits, 10.0 / bits + bits % 3) for bits in (2, 3, 4, 8))
plan = exact(Problem(tuple(Item(f"m{n}", options, "ffn", n, (4, 4)) for n in range(5)), 21))
c.printf(b"C afterwards\\n")
print(len(plan.precision))
"""
_CLOSED_STDOUT_SCRIPT = """
import os
from bitrank_planner.quiet_stdout import silenced
os.close(1)
with silenced():
    os.write(2, b"planned")
"""


def test_output_of_the_solver_is_discarded_and_other_output_kept() -> None:
    completed = subprocess.run(
        [sys.executable, "-c", _PRINTING_SCRIPT], capture_output=True, text=True, check=True
    )
    assert sorted(completed.stdout.split("\n")) == ["", "5", "C afterwards", "before"]


def test_silenced_works_without_standard_output() -> None:
    completed = subprocess.run(
        [sys.executable, "-c", _CLOSED_STDOUT_SCRIPT], stderr=subprocess.PIPE, text=True, check=True
    )
    assert completed.stderr == "planned"
