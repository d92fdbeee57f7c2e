"""The one error this package raises on bad input."""


class QuantError(ValueError):
    """A format, plan or backend that cannot be served; the message says what was expected, what came and what
    to do.
    """

    exit_code = 2  # the input is at fault: a program shows the message alone
