"""Handling of SIGINT and SIGTERM between polls, so that every run is closed with its true status."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupted(Exception):
    """SIGINT or SIGTERM stopped the matrix, or the reader of its output is gone (SIGPIPE).

    ``code`` is the exit code, 128 + signal number.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.code = 128 + signal_number


class Signals:
    """Record SIGINT and SIGTERM inside the block; :meth:`check` raises them as :class:`Interrupted`.

    An exception raised immediately could interrupt a write to the store, whose error handling would convert
    it to another error.
    """

    def __enter__(self) -> Signals:
        self._received: int | None = None
        self._before = {
            number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        if self._received is not None:
            raise Interrupted(self._received)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self._received = number
