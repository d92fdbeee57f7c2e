"""The error that this package raises on bad input."""


class QuantError(ValueError):
    """A format, plan or backend that cannot be used; the message gives expected, got and what to do."""

    exit_code = 2  # caused by user input: command lines print the message without a traceback
