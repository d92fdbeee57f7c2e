"""The errors this package raises."""


class AdapterError(ValueError):
    """A rank plan that cannot be attached; the message says what was expected, what came and what to do."""

    exit_code = 2  # the input is at fault: a program shows the message alone


class BudgetMissed(RuntimeError):
    """The active ranks do not sum to the rank budget after the freeze: the run's result would not be what it claims."""
