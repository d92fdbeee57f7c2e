"""Exceptions of this package."""


class AdapterError(ValueError):
    """Invalid rank plan or adapter; the message gives the expected value, the actual value and the remedy."""

    exit_code = 2  # the input is at fault: a program shows the message alone


class BudgetMissed(RuntimeError):
    """Active ranks after the freeze do not sum to the rank budget, so the result of the run is invalid."""
