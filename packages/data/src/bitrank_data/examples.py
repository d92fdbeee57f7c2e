"""What a task is made of: labelled or plain texts in three splits, as plain values."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

Kind = Literal["classification", "language-modelling"]
SPLITS = ("train", "validation", "test")
T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """One sentence or document. ``id`` is stable: paired tests match examples by it. ``label`` is None for plain text."""

    id: str
    text: str
    label: int | None = None


@dataclass(frozen=True)
class DataReport:
    """What reading and cutting did to the data: ``counts`` by name, and ``notes``, a sentence each for the user."""

    counts: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __add__(self, other: DataReport) -> DataReport:
        return DataReport({**self.counts, **other.counts}, (*self.notes, *other.notes))


@dataclass(frozen=True)
class Texts:
    """All examples of a task by split; ``classes`` names the labels in order (empty for plain text)."""

    kind: Kind
    splits: dict[str, list[Example]]
    classes: tuple[str, ...] = ()
    report: DataReport = field(default_factory=DataReport)


@dataclass(frozen=True)
class Source:
    """Where a task's texts come from. ``fingerprint`` is cheap and changes with the data; ``load`` may take seconds."""

    name: str
    kind: Kind
    fingerprint: Callable[[], str]
    load: Callable[[], Texts]
    about: str = ""


def stable_order(items: Sequence[T], key: Callable[[T], str]) -> list[T]:
    """``items`` shuffled by the hash of their key: the same on every machine and for every version of every library."""
    return sorted(items, key=lambda item: hashlib.sha256(key(item).encode()).digest())


def split_off(examples: Sequence[Example], test: int, validation: int) -> dict[str, list[Example]]:
    """The first ``test`` of ``examples`` in stable order, the next ``validation``, and the rest as train.

    For examples whose texts differ; where texts may repeat, :mod:`bitrank_data.splitting` keeps copies
    together.
    """
    shuffled = stable_order(examples, lambda example: f"{example.id}\t{example.text}")
    return {
        "test": shuffled[:test],
        "validation": shuffled[test : test + validation],
        "train": shuffled[test + validation :],
    }
