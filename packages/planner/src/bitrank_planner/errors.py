"""The one error of this package."""

from __future__ import annotations


class PlanError(ValueError):
    """A problem that cannot be planned, or words that mean nothing here: what was expected, what came, what to do."""

    exit_code = 2  # the input is at fault: a program shows the message alone


class Infeasible(PlanError):
    """No plan fits. ``smallest`` is the least number of bytes that any plan takes under the other limits."""

    def __init__(self, message: str, smallest: int) -> None:
        super().__init__(message)
        self.smallest = smallest
