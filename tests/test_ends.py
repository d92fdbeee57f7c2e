"""A run whose process is killed: a remedy derived from its log is printed and stored."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from study_tools import store_runs

# Executed at interpreter start, only in the process of the run.
_ENDS = """
import os, sys
if "bitrank.run" in sys.orig_argv:
    {statement}
"""
_MESSAGE = (
    "MPSNDArray.mm:788: failed assertion `[MPSNDArray initWithDevice:descriptor:] "
    "Error: total bytes of NDArray > 2**32'"
)
_METAL = f"""print({_MESSAGE!r}, flush=True)
    os.abort()"""


@pytest.mark.parametrize(
    ("statement", "killed", "remedy"),
    [
        (_METAL, "killed by SIGABRT", "a tensor is over the 2³² bytes that Metal takes"),
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL", "give --memory-limit"),
    ],
)
def test_remedy_is_printed_and_stored(tmp_path: Path, statement: str, killed: str, remedy: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(_ENDS.format(statement=statement))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    }
    command = [
        *(sys.executable, "-m", "bitrank", "run"),
        *("--profile", "smoke"),
        *("--config", "B-FP"),
        *("--task", "toy_sentences"),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    assert killed in done.stdout and remedy in done.stdout and "Traceback" not in done.stdout + done.stderr
    (run,) = store_runs(tmp_path)
    assert run["status"] == "KILLED" and remedy in run["tags"]["failure"]
