"""Exceptions of this package."""


class TrainError(ValueError):
    """Invalid settings or model; the message gives the expected value, the actual value and the remedy."""

    exit_code = 2  # the input is at fault: a program shows the message alone


class Diverged(RuntimeError):
    """Training stopped: loss or gradient not finite, or the smoothed loss ran away. A result, not a crash."""

    exit_code = 3

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"diverged at step {step}: {what}")
        self.step = step
        self.what = what
