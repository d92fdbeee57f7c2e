"""Exceptions of this package."""

from __future__ import annotations


class PlanError(ValueError):
    """An infeasible problem or an invalid argument.

    The message states what was expected, what was given and what to do.
    """

    exit_code = 2  # the input is at fault: a program shows the message alone


class Infeasible(PlanError):
    """No plan satisfies the limits.

    ``smallest`` is the size in bytes of the smallest plan that keeps the other limits.
    """

    def __init__(self, message: str, smallest: int) -> None:
        super().__init__(message)
        self.smallest = smallest
