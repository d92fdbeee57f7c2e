"""A process ends with its parent, whenever the parent ended."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from bitrank.errors import FAILED
from bitrank.process.lifetime import parent_environment

WATCHED = "from bitrank.process.lifetime import exit_with_parent as e; import time; e(); time.sleep({})"


def test_process_whose_parent_ended_before_it_watched_ends() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    environment = os.environ | {name: str(gone.pid) for name in parent_environment()}
    ended = subprocess.run([sys.executable, "-c", WATCHED.format(600)], env=environment, timeout=300)
    assert ended.returncode == FAILED


@pytest.mark.parametrize("stated", [True, False])
def test_process_whose_parent_lives_is_not_ended(stated: bool) -> None:
    environment = os.environ | (parent_environment() if stated else {})
    assert subprocess.run([sys.executable, "-c", WATCHED.format(2)], env=environment).returncode == 0


def test_programs_that_a_watched_process_starts_do_not_read_its_parent() -> None:
    program = f"{WATCHED.format(0)}; import os; print(sorted(set(os.environ) & {set(parent_environment())}))"
    environment = os.environ | parent_environment()
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout == "[]\n"
