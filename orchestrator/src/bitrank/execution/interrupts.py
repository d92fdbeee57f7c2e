"""SIGINT and SIGTERM while runs are under way: taken between two polls, so that every run is closed as what
it is.
"""

from __future__ import annotations

import signal
from types import FrameType


class Interrupted(Exception):
    """The user, or a SIGTERM, stopped the matrix; ``code`` is the exit code that says which."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.code = 128 + signal_number


class Signals:
    """Remember SIGINT and SIGTERM inside the block, for :meth:`check` to raise as :class:`Interrupted`
    between two polls.

    Raised at once they could strike inside a write to the store, whose own error handling would make
    something else of them.
    """

    def __enter__(self) -> Signals:
        self._came: int | None = None
        self._before = {
            number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        if self._came is not None:
            raise Interrupted(self._came)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self._came = number
