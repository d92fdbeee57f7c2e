"""Exception of this package for invalid input."""


class DataError(ValueError):
    """Unusable asset, task or file; the message gives the expected value, the actual one and the remedy."""
