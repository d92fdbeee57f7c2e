"""Measurements that need the whole model in 16 bits, in a process of their own.

A run may not have the memory for that model, and its peak memory must not include it. The process is a
program of its own, ``python -m bitrank.run.measure_in_subprocess CALL ANSWER``: a worker of
``multiprocessing`` imports the script that called :func:`bitrank.plan`, and without the guard ``if __name__
== "__main__"`` that script plans again, and waits for the measurement of its parent.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from bitrank.process.lifetime import parent_environment
from bitrank.process.worker import begin_worker
from bitrank.spec.run_spec import RunSpec

_Result = TypeVar("_Result")


def measure_in_subprocess(gather: Callable[[RunSpec], Path], place: Path, spec: RunSpec) -> Path:
    """The folder of ``gather(spec)``, which another process builds if ``place`` does not exist.

    ``gather`` is a function of a module, and returns ``place`` at once if it is complete. Raises as it does.
    """
    return gather(spec) if place.is_dir() else call_in_subprocess(gather, spec)


def call_in_subprocess(function: Callable[[RunSpec], _Result], spec: RunSpec) -> _Result:
    """``function(spec)`` in another process; ``function`` is that of a module. Raises as it does."""
    with TemporaryDirectory(prefix="bitrank-") as folder:
        call, answer = Path(folder) / "call", Path(folder) / "answer"
        call.write_bytes(pickle.dumps((function, spec)))
        done = subprocess.run(
            [sys.executable, "-m", "bitrank.run.measure_in_subprocess", str(call), str(answer)],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **parent_environment(), "PYTHONSAFEPATH": "1"},
            check=False,
        )
        if not answer.exists():
            raise RuntimeError(
                f"the process that measures the model ended with code {done.returncode} and without a result"
            )
        result, error = pickle.loads(answer.read_bytes())  # noqa: S301 - written by _answer
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]


def _answer(call: Path, answer: Path) -> None:
    begin_worker()
    function, spec = pickle.loads(call.read_bytes())  # noqa: S301 - written by the caller
    result: Any = None
    error = None
    try:
        result = function(spec)
    except Exception as raised:  # noqa: BLE001 - the caller raises it
        raised.add_note(traceback.format_exc())
        error = raised
    answer.write_bytes(pickle.dumps((result, error)))


if __name__ == "__main__":
    _answer(Path(sys.argv[1]), Path(sys.argv[2]))
