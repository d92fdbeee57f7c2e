"""Exception of this package for invalid input."""


class DataError(ValueError):
    """Unusable asset, task or file; the message gives the expected value, the actual one and the remedy."""

    exit_code = 2  # the input is at fault: a program shows the message alone


class ExampleError(DataError):
    """An example that cannot become a sequence; ``problem`` follows the name of the example ``id``.

    Where the sequences are made, only the id is known. :func:`~bitrank_data.tokenise` raises a
    :class:`DataError` with the file and row instead.
    """

    def __init__(self, id_: str, problem: str) -> None:
        super().__init__(f"example {id_}{problem}")
        self.id, self.problem = id_, problem
