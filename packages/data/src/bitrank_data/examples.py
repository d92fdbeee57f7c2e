"""Plain values of a task: labelled or plain texts in three splits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

SPLITS = ("train", "validation", "test")
T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """A sentence or document. ``id`` is stable, since paired tests match by it; ``label`` may be None.

    ``label`` is None for plain text.
    """

    id: str
    text: str
    label: int | None = None


@dataclass(frozen=True)
class PairExample(Example):
    """Two sentences that are classified together."""

    pair: str = ""


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

    ``kind`` is a key of :data:`~bitrank_data.kinds.DATA_KINDS`.
    """

    kind: str
    splits: dict[str, list[Example]]
    classes: tuple[str, ...] = ()
    report: DataReport = field(default_factory=DataReport)


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
