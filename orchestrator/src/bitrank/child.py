"""The process of one run: ``python -m bitrank.child FOLDER``. The parent made the folder and wrote ``spec.json`` into it.

Exit codes: 0 done, 1 failed, 2 bad input, 3 training diverged (a finding). The reason is in ``failure.json``.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path

FAILED, BAD_INPUT, DIVERGED = 1, 2, 3


def main(folder: Path) -> int:
    """Run the road in ``folder``. A run that is complete already does nothing."""
    exit_with_parent()
    (folder / "failure.json").unlink(missing_ok=True)
    if (folder / "result.json").exists():
        return 0
    try:
        _travel(folder)
    except Exception as error:  # noqa: BLE001 - whatever went wrong is recorded, then said by the exit code
        return _fail(folder, error)
    return 0


def _travel(folder: Path) -> None:
    warnings.filterwarnings("ignore", category=UserWarning, module=r"peft\..*")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells at import that an optional kernel package is absent
    from bitrank.notices import hear_warnings
    from bitrank.record import Record
    from bitrank.road import travel
    from bitrank.specs import read_spec

    record = Record(folder)
    with hear_warnings(record.emit):
        travel(read_spec(folder / "spec.json"), folder, record)


def _fail(folder: Path, error: Exception) -> int:
    from bitrank.advice import advise
    from bitrank.errors import is_user_error

    traceback.print_exc()
    diverged = type(error).__name__ == "Diverged"
    code = DIVERGED if diverged else BAD_INPUT if is_user_error(error) else FAILED
    failure = {"kind": type(error).__name__, "message": str(error), "trace": traceback.format_exc(), "code": code}
    failure["advice"] = advise(f"{failure['kind']}: {failure['message']}") or ""
    (folder / "failure.json").write_text(json.dumps(failure, indent=1))
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
    sys.exit(main(Path(sys.argv[1])))
