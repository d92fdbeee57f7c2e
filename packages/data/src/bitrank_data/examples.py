"""Plain values of a task: labelled or plain texts in three splits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from bitrank_data.errors import DataError, ExampleError

TRAIN = "train"
SPLITS = (TRAIN, "validation", "test")
T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """A sentence or document. ``id`` is stable, since paired tests match by it; ``label`` may be None.

    ``label`` is None for plain text.
    """

    id: str
    text: str
    label: int | None = None

    @property
    def key(self) -> str:
        """Text by which examples are equal, so that they are in the same split."""
        return self.text

    @property
    def answered(self) -> tuple[str, ...]:
        """Each answer of a conversation with all that precedes it; none for other examples."""
        return ()


def example_name(id_: str) -> str:
    """Name of an example in messages, for tasks whose ids are no numbers of rows."""
    return f"example {id_}"


def row_name(id_: str) -> str:
    """Name of an example's row in messages, for tasks of the hub: their ids end with numbers from 0."""
    split, _, number = id_.rpartition("-")
    if not number.isdecimal():
        return id_
    return f"row {int(number) + 1}" + (f" of {split}" if split else "")


@dataclass(frozen=True)
class PairExample(Example):
    """Two sentences that are classified together."""

    pair: str = ""

    @property
    def key(self) -> str:
        """Both texts."""
        return f"{self.text}\0{self.pair}"


@dataclass(frozen=True)
class Turn:
    """One message of a conversation; ``role`` is ``user``, ``assistant``, ``system`` or another name."""

    role: str
    content: str


ASSISTANT, USER, SYSTEM = "assistant", "user", "system"


@dataclass(frozen=True)
class Dialogue(Example):
    """Prompt and completion, instruction and output, or a conversation; ``text`` is all of it for reading.

    ``style`` is a key of :data:`~bitrank_data.templates.DEFAULT_TEMPLATES`, for tokenizers without a chat
    template. ``given`` is the input of an instruction; it is empty if there is none.
    """

    turns: tuple[Turn, ...] = ()
    style: str = "chat"
    given: str = ""

    @property
    def key(self) -> str:
        """All that precedes the last answer: examples with one prompt are in the same split."""
        last = max((n for n, turn in enumerate(self.turns) if turn.role == ASSISTANT), default=0)
        return self._until(last)

    @property
    def answered(self) -> tuple[str, ...]:
        """An answer that opens a conversation has no prompt, and is context."""
        answers = [n for n, turn in enumerate(self.turns) if n and turn.role == ASSISTANT]
        return tuple(self._until(n + 1) for n in answers)

    def _until(self, end: int) -> str:
        parts = [f"{turn.role}\0{turn.content}" for turn in self.turns[:end]]
        return "\0".join([*parts, self.given])


@dataclass(frozen=True)
class TargetExample(Example):
    """A source ``text`` with the ``target`` text that a model is to write."""

    target: str = ""


@dataclass(frozen=True)
class DataReport:
    """Effects of reading and splitting: ``counts`` by name, and ``notes``, one sentence each for the user."""

    counts: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __add__(self, other: DataReport) -> DataReport:
        return DataReport({**self.counts, **other.counts}, (*self.notes, *other.notes))


@dataclass(frozen=True)
class Texts:
    """All examples of a task by split; ``classes`` names the labels in order (empty for plain text).

    ``kind`` is a key of :data:`~bitrank_data.kinds.DATA_KINDS`. ``given_splits``: the user made the splits,
    so validation and test may lack a class. ``place`` takes the id of an example, and names it such that the
    user finds it: by its row, and its file if the user gave files.
    """

    kind: str
    splits: Mapping[str, Sequence[Example]]
    classes: tuple[str, ...] = ()
    report: DataReport = field(default_factory=DataReport)
    given_splits: bool = False
    place: Callable[[str], str] = field(default=example_name, compare=False)

    def named(self, error: ExampleError) -> DataError:
        """``error`` with the place of its example."""
        return DataError(f"{self.place(error.id)}{error.problem}")


@dataclass(frozen=True)
class Source:
    """Source of a task's texts: ``fingerprint`` is cheap and identifies the data, ``load`` takes seconds."""

    name: str
    kind: str
    fingerprint: Callable[[], str]
    load: Callable[[], Texts]
    about: str = ""


def stable_order(items: Sequence[T], key: Callable[[T], str]) -> list[T]:
    """``items`` ordered by the SHA-256 of their key, independent of machine and library versions."""
    return sorted(items, key=lambda item: hashlib.sha256(key(item).encode()).digest())


def split_off(examples: Sequence[Example], test: int, validation: int) -> dict[str, list[Example]]:
    """Split in stable order: the first ``test`` examples, the next ``validation``, the rest as train.

    Requires different texts; :mod:`bitrank_data.splitting` keeps repeated texts in one split.
    """
    shuffled = stable_order(examples, lambda example: f"{example.id}\t{example.text}")
    return {
        "test": shuffled[:test],
        "validation": shuffled[test : test + validation],
        "train": shuffled[test + validation :],
    }
