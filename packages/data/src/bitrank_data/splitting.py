"""Train, validation and test splits by text content; equal texts are always in the same split.

Texts are equal if they match after Unicode normalization (NFKC), case folding and collapsing white space.
This affects splits only; models receive the original texts. The order is that of the SHA-256 of the
normalized text, so a split depends on the texts only, not on their order or number in the file.

The functions take hashes instead of texts: 16 bytes and a class for each row, however long the texts.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bitrank_data.errors import DataError
from bitrank_data.examples import DataReport, Example
from bitrank_data.rows import quoted

TRAIN, VALIDATION, TEST = "train", "validation", "test"
KEY_BYTES = 16  # of the SHA-256: enough that two texts never share them, and in the same order
# More classes than this need two training texts each on average: a column of ids or free text has as many
# classes as texts. A few classes of three texts each are accepted, as small tests use them.
_FEW_CLASSES = 10
_FEW_TEXTS = 5  # training texts of each class on average; fewer give a note
Place = Callable[[int], str]  # index of a row → its name in messages
Rows = dict[str, np.ndarray]  # split → indices of its rows


def text_key(text: str) -> str:
    """Normalized ``text`` for comparison: NFKC, case folded, white space collapsed.

    A text of several parts has NUL between them (:attr:`Example.key`), and each part is normalized alone:
    ``split`` takes NUL for a character of a word, so white space beside it would stay.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "\0".join(" ".join(part.split()) for part in folded.split("\0"))


def key_digest(text: str) -> bytes:
    """Digest of the normalized ``text``, 16 bytes."""
    return hashlib.sha256(text_key(text).encode()).digest()[:KEY_BYTES]


def groups_of(examples: Sequence[Example]) -> list[list[Example]]:
    """Groups of examples with equal text, ordered by the text's hash; the given order within a group."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(text_key(example.text), []).append(example)
    return [groups[key] for key in sorted(groups, key=lambda key: hashlib.sha256(key.encode()).digest())]


@dataclass(frozen=True)
class Keyed:
    """Rows of a task: digests of their texts, 16 bytes each, and their classes (0 without classes).

    ``place`` names a row in messages, and ``classes`` are the names of the classes (empty without). Of rows
    with equal digests, validation and test keep the first with the largest of ``lengths_N``.
    """

    digests: bytes | bytearray
    labels_N: np.ndarray
    place: Place
    classes: Sequence[str] = ()
    lengths_N: np.ndarray | None = None

    @cached_property
    def halves_N2(self) -> np.ndarray:
        """The two halves of each digest as integers, (N, 2)."""
        return np.frombuffer(self.digests, dtype=">u8").reshape(-1, 2).astype(np.uint64)

    def select(self, rows: np.ndarray) -> Keyed:
        """The rows with the indices ``rows``, in that order."""
        digests = np.frombuffer(self.digests, dtype=f"V{KEY_BYTES}")[rows].tobytes()
        lengths_N = None if self.lengths_N is None else self.lengths_N[rows]
        return Keyed(
            digests, self.labels_N[rows], lambda row: self.place(int(rows[row])), self.classes, lengths_N
        )


class _Groups:
    """Rows in groups of equal text, ordered by digest; rows of a group keep their order, longer ones first.

    ``order_N`` has the rows in this order and ``group_N`` the group of each of them. ``label_G`` is the most
    frequent class of a group, on ties the first class.
    """

    def __init__(self, keyed: Keyed) -> None:
        halves = keyed.halves_N2
        longest = () if keyed.lengths_N is None else (-keyed.lengths_N,)
        self.order_N = np.lexsort((*longest, halves[:, 1], halves[:, 0]))
        sorted_N2 = halves[self.order_N]
        begins_N = np.ones(len(halves), dtype=bool)
        begins_N[1:] = (sorted_N2[1:] != sorted_N2[:-1]).any(axis=1)
        self.group_N = np.cumsum(begins_N) - 1
        self.count = int(begins_N.sum())
        self._classes = max(len(keyed.classes), 1)
        self.pair_N = self.group_N * self._classes + keyed.labels_N[self.order_N]
        pairs, counts = np.unique(self.pair_N, return_counts=True)
        groups, labels = np.divmod(pairs, self._classes)  # of each different (group, class) pair
        ranked = np.lexsort((labels, -counts, groups))
        first = np.unique(groups[ranked], return_index=True)[1]
        self.label_G = labels[ranked][first]
        self.labels_of_group = np.bincount(groups, minlength=self.count)

    def by_class(self) -> dict[int, np.ndarray]:
        """Groups of each class, in the order of their digests."""
        order = np.argsort(self.label_G, kind="stable")
        labels, begins = np.unique(self.label_G[order], return_index=True)
        return dict(zip(labels.tolist(), np.split(order, begins[1:]), strict=True))

    def rows(self, in_split_G: np.ndarray, repeats: bool) -> np.ndarray:
        """Rows of the chosen groups; without ``repeats`` one of each text and class."""
        places = np.flatnonzero(in_split_G[self.group_N])
        if not repeats:
            places = places[np.sort(np.unique(self.pair_N[places], return_index=True)[1])]
        chosen: np.ndarray = self.order_N[places]
        return chosen


def split_by_text(keyed: Keyed, held_out: Sequence[str] = (TEST, VALIDATION)) -> tuple[Rows, DataReport]:
    """Split the different texts: about 10 % for each of ``held_out``, by class, and the rest for training.

    Training keeps every copy of a text. The others keep one copy per label, so that a text counts once in
    model comparisons. Raises :class:`DataError` if a class has too few texts for one in each split, or many
    classes have one training text each.
    """
    groups = _Groups(keyed)
    split_G = np.zeros(groups.count, dtype=np.int8)  # 0: train
    for label, places in groups.by_class().items():
        if len(places) <= len(held_out):
            raise DataError(_too_few(keyed, label, len(places), len(held_out) + 1))
        tenth = max(1, (len(places) + 5) // 10)
        for number in range(len(held_out)):
            split_G[places[number * tenth : (number + 1) * tenth]] = number + 1
    rows = {TRAIN: groups.rows(split_G == 0, repeats=True)}
    for number, name in enumerate(held_out, 1):
        rows[name] = groups.rows(split_G == number, repeats=False)
    _refuse_absent(rows, keyed)
    notes = notes_on_classes(int((split_G == 0).sum()), keyed.classes)
    kept = sum(len(part) for part in rows.values())
    return rows, _repeats(len(keyed.labels_N), groups.count, kept) + DataReport(notes=notes)


def _too_few(keyed: Keyed, label: int, texts: int, needed: int) -> str:
    first = keyed.place(int(np.flatnonzero(keyed.labels_N == label)[0]))
    what, where = "there are", "needed"
    if keyed.classes:
        what, where = f"the class {quoted(keyed.classes[label])} has", "needed of each class"
    each = "training, validation and test have" if needed == 3 else "training and validation have"
    return (
        f"{what} {texts} different texts (the first in {first}); {needed} or more are {where}, so that "
        f"{each} one each. Add different texts, or remove these rows"
    )


def _refuse_absent(rows: Rows, keyed: Keyed) -> None:
    """Raise :class:`DataError` if a class has no text in a split.

    This happens if every text of the class has another label more often.
    """
    for split, numbers in rows.items():
        counts = np.bincount(keyed.labels_N[numbers], minlength=len(keyed.classes))
        absent = np.flatnonzero(counts[: len(keyed.classes)] == 0)
        if len(absent):
            raise DataError(
                f"the class {quoted(keyed.classes[absent[0]])} has no text in {split}: its texts carry "
                "another label more often. Correct the labels of equal texts, or remove the class"
            )


def notes_on_classes(texts: int, classes: Sequence[str]) -> tuple[str, ...]:
    """A note if more than ten classes have few training texts on average.

    Raises :class:`DataError` if they have fewer than two.
    """
    if len(classes) <= _FEW_CLASSES or texts >= _FEW_TEXTS * len(classes):
        return ()
    found = f"{len(classes)} classes have {texts} different training texts"
    if texts < 2 * len(classes):
        raise DataError(
            f"{found}, fewer than two each: the labels look like ids or free text (such as "
            f"{quoted(classes[0])}). Give another label column, add examples or merge classes; for language "
            "modelling remove the column 'label'"
        )
    return (f"{found}, {texts / len(classes):.1f} each on average (classes such as {quoted(classes[0])})",)


def _repeats(rows: int, texts: int, kept: int) -> DataReport:
    repeats, left_out = rows - texts, rows - kept
    note = (
        f"{repeats} rows repeat the text of another row: equal texts are in one split, and {left_out} "
        "repeats were left out of validation and test"
    )
    counts = {"repeated_rows": repeats, "repeats_left_out": left_out}
    return DataReport(counts, (note,) if repeats else ())


def conflicting_labels(keyed: Keyed) -> DataReport:
    """Number of texts whose rows, in any splits, have different labels, and a note with two rows."""
    groups = _Groups(keyed)
    conflicts = np.flatnonzero(groups.labels_of_group > 1)
    counts = {"conflicting_texts": len(conflicts)}
    if not len(conflicts):
        return DataReport(counts)
    rows = groups.order_N[groups.group_N == conflicts[0]]
    other = rows[keyed.labels_N[rows] != keyed.labels_N[rows[0]]][0]
    both = [(keyed.place(int(row)), keyed.classes[keyed.labels_N[row]]) for row in (rows[0], other)]
    pair = " and ".join(f"{where} {quoted(label)}" for where, label in both)
    several = f"{len(conflicts)} texts have different labels in different rows"
    return DataReport(counts, (f"{several} (such as {pair}); all are kept",))


def refuse_unlearned(rows: Mapping[str, np.ndarray], keyed: Keyed) -> None:
    """Raise :class:`DataError` if training lacks a class that another split has."""
    trained = np.bincount(keyed.labels_N[rows[TRAIN]], minlength=max(len(keyed.classes), 1))
    for split, numbers in rows.items():
        unknown = numbers[trained[keyed.labels_N[numbers]] == 0]
        if len(unknown):
            row = int(unknown[0])
            label = quoted(keyed.classes[keyed.labels_N[row]])
            raise DataError(
                f"{keyed.place(row)} has the label {label}, which no training "
                f"row has ({len(unknown)} such rows in {split}): a model cannot learn it. Add training rows "
                "of this class, or remove these rows"
            )


def check_given(rows: Mapping[str, np.ndarray], keyed: Keyed, given: Sequence[str]) -> DataReport:
    """Notes on splits: repeated texts within the ``given`` ones, and texts that are in training too.

    A further note if classes have few texts. Raises :class:`DataError` for classes that look like ids.
    """
    first_half = keyed.halves_N2[:, 0]
    counts: dict[str, int] = {}
    notes = []
    for split in (VALIDATION, TEST):
        shared = int(np.isin(first_half[rows[split]], first_half[rows[TRAIN]]).sum())
        counts[f"{split}_texts_in_train"] = shared
        if shared:
            count = f"{shared} of {len(rows[split])} texts of {split}"
            notes.append(f"{count} are also in train, as in the files")
    for split in given:
        repeats = len(rows[split]) - len(np.unique(first_half[rows[split]]))
        counts[f"{split}_repeats"] = repeats
        if repeats:
            notes.append(f"{repeats} texts of {split} repeat another of them; all are kept, as in the files")
    notes += notes_on_classes(len(np.unique(first_half[rows[TRAIN]])), keyed.classes)
    return DataReport(counts, tuple(notes))
