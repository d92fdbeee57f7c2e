"""The one error this package raises on bad input."""


class DataError(ValueError):
    """An asset, task or file that cannot be used; the message says what was expected, what came and what to do."""

    exit_code = 2  # the input is at fault: a program shows the message alone
