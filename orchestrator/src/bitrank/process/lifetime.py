"""Exit codes of a run's process, and a thread that ends the process when its parent is gone."""

from __future__ import annotations

import os
import threading
import time

FAILED, BAD_INPUT, DIVERGED = 1, 2, 3


def exit_with_parent() -> None:
    """Exit when the parent process is gone (killed), so that two processes never train the same run."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(FAILED)

    threading.Thread(target=watch, daemon=True).start()
