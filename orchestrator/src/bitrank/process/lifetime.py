"""A watch that ends a run's process together with its parent."""

from __future__ import annotations

import os
import threading
import time

from bitrank.errors import FAILED


def exit_with_parent() -> None:
    """Exit when the parent process is gone (killed), so that two processes never train the same run."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(FAILED)

    threading.Thread(target=watch, daemon=True).start()
