"""Exception of this package for invalid input."""


class DataError(ValueError):
    """Unusable asset, task or file; the message gives the expected value, the actual one and the remedy."""

    exit_code = 2  # the input is at fault: a program shows the message alone
