"""The one error this package raises on bad input."""


class DataError(ValueError):
    """An asset, task or file that cannot be used; the message says what was expected, what came and what to do."""
