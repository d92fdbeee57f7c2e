"""Splits of records that share a source: equal texts, a claim, an evidence page, a document stay together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def connected(records: Sequence[T], keys: Callable[[T], Iterable[str]]) -> list[list[T]]:
    """Groups of records that share a key, directly or through other records, in the order of the records.

    A record without keys is a group of its own.
    """
    parent = list(range(len(records)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]  # halve the path, so that later searches are short
            index = parent[index]
        return index

    first: dict[str, int] = {}
    for index, record in enumerate(records):
        for key in keys(record):
            parent[root(index)] = root(first.setdefault(key, index))
    groups: dict[int, list[T]] = {}
    for index, record in enumerate(records):
        groups.setdefault(root(index), []).append(record)
    return list(groups.values())


def split_groups(
    groups: Sequence[Sequence[T]], key: Callable[[T], str], test: int, validation: int
) -> dict[str, list[T]]:
    """Whole groups in stable order: test until it has ``test`` records, then validation, the rest as train.

    ``key`` identifies a record; a group is ordered by the hash of its smallest key, so a split depends on the
    records only. A split may exceed its size by the rest of one group.
    """

    def place(group: Sequence[T]) -> bytes:
        return hashlib.sha256(min(key(record) for record in group).encode()).digest()

    sizes = {"test": test, "validation": validation}
    splits: dict[str, list[T]] = {"test": [], "validation": [], "train": []}
    for group in sorted(groups, key=place):
        open_splits = (split for split, size in sizes.items() if len(splits[split]) < size)
        splits[next(open_splits, "train")].extend(group)
    return splits
