"""``failure.json``: why a process of a run failed, for the process that follows the run."""

from __future__ import annotations

import contextlib
import json
import traceback
from pathlib import Path

from bitrank.errors import BAD_INPUT, disk_problem, exit_code_of

_CONTINUES = "once that is solved, the same command continues this run"


def write_failure(path: Path, error: Exception) -> int:
    """Write the reason of ``error``, its trace and advice to ``path``; returns the exit code."""
    from bitrank_data import write_atomically

    from bitrank.process.advice import advise

    traceback.print_exc()
    code = exit_code_of(error)
    disk = None if code == BAD_INPUT else disk_problem(error)
    failure = {
        "kind": type(error).__name__,
        "message": f"{disk}; {_CONTINUES}" if disk else str(error),
        "trace": traceback.format_exc(),
        "code": code,
    }
    failure["advice"] = advise(f"{failure['kind']}: {failure['message']}") or ""
    with contextlib.suppress(OSError):  # on a full disk the parent has only the exit code
        write_atomically(path, json.dumps(failure, indent=1))
    return code
