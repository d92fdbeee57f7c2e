"""The process of one run: ``python -m bitrank.child FOLDER``. The parent made the folder and wrote ``spec.json`` into it.

A run of several processes starts this program again for each rank: ``python -m bitrank.child FOLDER RANK COUNT MEETING``.
Exit codes: 0 done, 1 failed, 2 bad input, 3 training diverged (a finding). The reason is in ``failure.json``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path

from bitrank.errors import UserError
from bitrank.imports import quick_imports, quiet_libraries
from bitrank.process.run_folder import RESULT, is_complete
from bitrank.ranks import failure_path, launch

FAILED, BAD_INPUT, DIVERGED = 1, 2, 3


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


def be_rank(folder: Path, rank: int, count: int, meeting: Path) -> int:
    """Run the road as one of ``count`` processes that find each other through the file ``meeting``."""
    exit_with_parent()
    return _run(folder, rank, count, meeting)


def _run(folder: Path, rank: int, count: int, meeting: Path) -> int:
    try:
        _travel(folder, rank, count, meeting)
    except Exception as error:  # noqa: BLE001 - whatever went wrong is recorded, then said by the exit code
        return _fail(failure_path(folder, rank), error)
    return 0


def _travel(folder: Path, rank: int, count: int, meeting: Path) -> None:
    quiet_libraries()
    with quick_imports():
        from bitrank_trainer import Joined, Sharded, choose_device, join, leave

        from bitrank.follower import open_record
        from bitrank.inputs import check_inputs, check_plan
        from bitrank.models import locate
        from bitrank.notices import hear_warnings
        from bitrank.road import travel
        from bitrank.specs import read_spec

    spec = read_spec(folder / "spec.json")
    check_plan(spec)
    check_inputs(spec)  # early, to refuse without loading anything; store_base checks again when all is read
    locate(spec.model)  # a model that the cache lacks is made before joining: transformers saves in the first of joined processes only
    processes = join(choose_device(spec.device), rank, count, meeting, Sharded if spec.shard else Joined)
    record = open_record(folder, processes)
    with hear_warnings(record.emit):
        travel(spec, folder, record, processes)
    leave()


def _fail(path: Path, error: Exception) -> int:
    from bitrank_data import write_atomically

    from bitrank.advice import advise
    from bitrank.errors import is_user_error

    traceback.print_exc()
    diverged = type(error).__name__ == "Diverged"
    code = DIVERGED if diverged else BAD_INPUT if is_user_error(error) else FAILED
    failure = {"kind": type(error).__name__, "message": str(error), "trace": traceback.format_exc(), "code": code}
    failure["advice"] = advise(f"{failure['kind']}: {failure['message']}") or ""
    write_atomically(path, json.dumps(failure, indent=1))
    return code


def exit_with_parent() -> None:
    """End this process when its parent is gone (killed), so that no run is ever trained by two processes."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(FAILED)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    place, *words = sys.argv[1:]
    sys.exit(be_rank(Path(place), int(words[0]), int(words[1]), Path(words[2])) if words else main(Path(place)))
