"""The errors this package raises."""


class TrainError(ValueError):
    """Settings that cannot train; the message says what was expected, what came and what to do."""

    exit_code = 2  # the input is at fault: a program shows the message alone


class Diverged(RuntimeError):
    """Training stopped because the loss or a gradient was not finite, or the loss ran away. A finding, not a crash."""

    exit_code = 3

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"diverged at step {step}: {what}")
        self.step = step
        self.what = what
