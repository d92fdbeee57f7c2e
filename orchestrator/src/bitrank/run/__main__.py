"""The process of one run: ``python -m bitrank.run FOLDER``, where FOLDER contains ``spec.json``.

A run of several processes starts this program again for each rank: ``python -m bitrank.run FOLDER RANK COUNT
RENDEZVOUS``. Exit codes: 0 done, 1 failed, 2 bad input, 3 training diverged (a result, not an error).
``failure.json`` gives the reason.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from pathlib import Path
from typing import NoReturn

from bitrank.errors import UserError
from bitrank.process.failure import write_failure
from bitrank.process.fast_imports import quick_imports, quiet_libraries
from bitrank.process.lifetime import exit_with_parent
from bitrank.process.run_folder import RESULT, is_complete
from bitrank.run.multiprocess import failure_path, launch


def main(folder: Path) -> int:
    """Execute the run in ``folder`` and return the exit code. A complete run is not executed again."""
    exit_with_parent()
    if is_complete(folder):
        return 0
    (folder / RESULT).unlink(missing_ok=True)
    failure_path(folder, 0).unlink(missing_ok=True)
    try:
        count = int(json.loads((folder / "spec.json").read_text())["processes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (
            f"{folder / 'spec.json'} is damaged ({error}); "
            "repeat the same `bitrank` command to write the file again"
        )
        return write_failure(failure_path(folder, 0), UserError(reason))
    if count > 1:
        return launch(folder, count)
    return _run(folder, 0, 1, folder)


def run_rank(folder: Path, rank: int, count: int, rendezvous_file: Path) -> int:
    """Execute the run as rank ``rank`` of ``count`` processes, which connect through ``rendezvous_file``."""
    exit_with_parent()
    return _run(folder, rank, count, rendezvous_file)


def _run(folder: Path, rank: int, count: int, rendezvous_file: Path) -> int:
    try:
        _execute(folder, rank, count, rendezvous_file)
    except Exception as error:  # noqa: BLE001 - every failure is recorded and sets the exit code
        return write_failure(failure_path(folder, rank), error)
    return 0


def _execute(folder: Path, rank: int, count: int, rendezvous_file: Path) -> None:
    quiet_libraries()
    with quick_imports():
        from bitrank_trainer import Joined, Sharded, choose_device, join, leave

        from bitrank.models.locate import locate
        from bitrank.run.notices import report_mps_fallbacks
        from bitrank.run.silent_record import open_record
        from bitrank.run.train_run import execute
        from bitrank.spec.inputs import check_inputs, check_plan
        from bitrank.spec.run_spec import read_spec

    spec = read_spec(folder / "spec.json")
    check_plan(spec)
    # Checked before anything is loaded; store_base checks again after all inputs are read.
    check_inputs(spec)
    # A missing model is added to the cache before the processes join: once joined, transformers saves only
    # in rank 0.
    locate(spec.model_source)
    strategy = Sharded if spec.shard else Joined
    processes = join(choose_device(spec.device), rank, count, rendezvous_file, strategy)
    record = open_record(folder, processes)
    with report_mps_fallbacks(record.emit):
        execute(spec, folder, record, processes)
    leave()


def _end_rank(code: int) -> NoReturn:
    """Exit with ``code`` without finalizing the interpreter.

    FSDP keeps a reference to its process group, so gloo's threads outlive :func:`bitrank_trainer.leave`. One
    that frees its last tensor while the interpreter is finalized asks for the GIL, and Python then ends that
    thread, which C++ answers with SIGABRT: a complete run would be recorded as killed.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run_folder, *rank_arguments = sys.argv[1:]
    if rank_arguments:
        own_rank, rank_count, rendezvous = rank_arguments
        _end_rank(run_rank(Path(run_folder), int(own_rank), int(rank_count), Path(rendezvous)))
    sys.exit(main(Path(run_folder)))
