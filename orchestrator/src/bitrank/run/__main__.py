"""The process of one run: ``python -m bitrank.run FOLDER``. The parent made the folder and wrote
``spec.json`` into it.

A run of several processes starts this program again for each rank: ``python -m bitrank.run FOLDER RANK COUNT
RENDEZVOUS``. Exit codes: 0 done, 1 failed, 2 bad input, 3 training diverged (a finding). The reason is in
``failure.json``.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from pathlib import Path

from bitrank.errors import BAD_INPUT, UserError, exit_code_of
from bitrank.process.fast_imports import quick_imports, quiet_libraries
from bitrank.process.lifetime import exit_with_parent
from bitrank.process.run_folder import RESULT, is_complete
from bitrank.run.multiprocess import failure_path, launch

_CONTINUES = "once that is solved, the same command continues this run"


def main(folder: Path) -> int:
    """Run the road in ``folder``. A run that is complete already does nothing."""
    exit_with_parent()
    if is_complete(folder):
        return 0
    (folder / RESULT).unlink(missing_ok=True)
    failure_path(folder, 0).unlink(missing_ok=True)
    try:
        count = int(json.loads((folder / "spec.json").read_text())["processes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{folder / 'spec.json'} is damaged ({error}); run the same `bitrank` command again: it writes the file again"
        return _fail(failure_path(folder, 0), UserError(reason))
    if count > 1:
        return launch(folder, count)
    return _run(folder, 0, 1, folder)


def run_rank(folder: Path, rank: int, count: int, rendezvous_file: Path) -> int:
    """Run the road as one of ``count`` processes that find each other through the file ``rendezvous_file``."""
    exit_with_parent()
    return _run(folder, rank, count, rendezvous_file)


def _run(folder: Path, rank: int, count: int, rendezvous_file: Path) -> int:
    try:
        _execute(folder, rank, count, rendezvous_file)
    except Exception as error:  # noqa: BLE001 - whatever went wrong is recorded, then said by the exit code
        return _fail(failure_path(folder, rank), error)
    return 0


def _execute(folder: Path, rank: int, count: int, rendezvous_file: Path) -> None:
    quiet_libraries()
    with quick_imports():
        from bitrank_trainer import Joined, Sharded, choose_device, join, leave

        from bitrank.models.locate import locate
        from bitrank.run.notices import report_mps_fallbacks
        from bitrank.run.record import open_record
        from bitrank.run.road import execute
        from bitrank.spec.inputs import check_inputs, check_plan
        from bitrank.spec.run_spec import read_spec

    spec = read_spec(folder / "spec.json")
    check_plan(spec)
    check_inputs(spec)  # early, to refuse without loading anything; store_base checks again when all is read
    locate(
        spec.model
        # a model that the cache lacks is made before joining: transformers saves in the first of joined processes
        # only
    )
    processes = join(
        choose_device(spec.device), rank, count, rendezvous_file, Sharded if spec.shard else Joined
    )
    record = open_record(folder, processes)
    with report_mps_fallbacks(record.emit):
        execute(spec, folder, record, processes)
    leave()


def _fail(path: Path, error: Exception) -> int:
    from bitrank_data import write_atomically

    from bitrank.errors import disk_problem
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
    with contextlib.suppress(OSError):  # on a full disk: the code alone tells the parent
        write_atomically(path, json.dumps(failure, indent=1))
    return code


if __name__ == "__main__":
    place, *arguments = sys.argv[1:]
    sys.exit(
        run_rank(Path(place), int(arguments[0]), int(arguments[1]), Path(arguments[2]))
        if arguments
        else main(Path(place))
    )
