"""The one error this package raises on bad input."""


class AnalysisError(ValueError):
    """A store that cannot be read; the message says what was expected, what came and what to do."""
