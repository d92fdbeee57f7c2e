"""A watch that ends a run's process together with its parent."""

from __future__ import annotations

import os
import threading
import time
from multiprocessing import parent_process

from bitrank.errors import FAILED

_PARENT = "BITRANK_PARENT"


def parent_environment() -> dict[str, str]:
    """Return the variable that names this process as the parent of a program that it starts."""
    return {_PARENT: str(os.getpid())}


def exit_with_parent() -> None:
    """Exit when the parent process is gone (killed), so that two processes never train the same run.

    The parent may be gone before this is called, while libraries are imported. So its number comes from the
    environment or from multiprocessing, and from the system only if neither has it.
    """
    parent = _parent()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(FAILED)

    threading.Thread(target=watch, daemon=True).start()


def _parent() -> int:
    stated = os.environ.pop(_PARENT, "")  # of this process alone: programs that it starts must not read it
    if started_by := parent_process():
        return started_by.pid or os.getppid()
    return int(stated) if stated.isdecimal() else os.getppid()
