"""Train, validation and test splits by text content; equal texts are always in the same split.

Texts are equal if they match after Unicode normalization (NFKC), case folding and collapsing white space.
This affects splits only; models receive the original texts. The order is that of the SHA-256 of the
normalized text, so a split depends on the texts only, not on their order or number in the file.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from bitrank_data.errors import DataError
from bitrank_data.examples import DataReport, Example

_SPLITS = 3
# More classes than this need two training texts each on average: a column of ids or free text has as many
# classes as texts. A few classes of three texts each are accepted, as small tests use them.
_FEW_CLASSES = 10
Group = list[Example]  # examples with equal text
Place = Callable[[str], str]  # example id → row name for messages
Split = tuple[dict[str, list[Example]], DataReport]


def text_key(text: str) -> str:
    """Normalized ``text`` for comparison: NFKC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def groups_of(examples: Sequence[Example]) -> list[Group]:
    """Groups of examples with equal text, ordered by the text's hash; the given order within a group."""
    groups: dict[str, Group] = {}
    for example in examples:
        groups.setdefault(text_key(example.text), []).append(example)
    return [groups[key] for key in sorted(groups, key=lambda key: hashlib.sha256(key.encode()).digest())]


def split_by_text(examples: Sequence[Example], place: Place, classes: Sequence[str] = ()) -> Split:
    """Split the different texts into about 80 / 10 / 10 %, stratified by class.

    Training keeps every copy of a text. Validation and test keep one copy per label, so that a text counts
    once in model comparisons. ``place`` maps an example id to its row name. Raises :class:`DataError` if a
    class has fewer than three texts, or many classes have one training text each.
    """
    groups = groups_of(examples)
    held_out = {"test": set[int](), "validation": set[int]()}
    for label, places in _by_class(groups).items():
        if len(places) < _SPLITS:
            first = place(next(example.id for example in examples if example.label == label))
            if label is None:
                raise DataError(_too_few("there are", len(places), first, "needed"))
            what = f"the class {classes[label]!r} has"
            raise DataError(_too_few(what, len(places), first, "needed of each class"))
        tenth = max(1, (len(places) + 5) // 10)
        held_out["test"].update(places[:tenth])
        held_out["validation"].update(places[tenth : 2 * tenth])
    splits: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for number, group in enumerate(groups):
        split = next((name for name, places in held_out.items() if number in places), "train")
        splits[split] += group if split == "train" else _one_for_each_label(group)
    _refuse_absent(splits, classes)
    _refuse_ids(splits["train"], classes)
    return splits, _report(examples, groups, splits, place, classes)


def _by_class(groups: Sequence[Group]) -> dict[int | None, list[int]]:
    """Group indices by class, using the most frequent label of a text, on ties the first class."""
    places: dict[int | None, list[int]] = {}
    for number, group in enumerate(groups):
        counts = Counter(example.label for example in group)
        label = min(counts, key=lambda label: (-counts[label], label if label is not None else 0))
        places.setdefault(label, []).append(number)
    return places


def _one_for_each_label(group: Group) -> Group:
    first: dict[int | None, Example] = {}
    for example in group:
        first.setdefault(example.label, example)
    return list(first.values())


def _too_few(what: str, texts: int, where: str, needed: str) -> str:
    return (
        f"{what} {texts} different texts (the first in {where}); {_SPLITS} or more are {needed}, so that "
        "training, validation and test have one each. Add different texts, or remove these rows"
    )


def _refuse_absent(splits: dict[str, list[Example]], classes: Sequence[str]) -> None:
    """Raise :class:`DataError` if a class has no text in a split.

    This happens if every text of the class has another label more often.
    """
    for split, examples in splits.items():
        present = {example.label for example in examples}
        absent = [name for label, name in enumerate(classes) if label not in present]
        if absent:
            raise DataError(
                f"the class {absent[0]!r} has no text in {split}: its texts carry another label more often. "
                "Correct the labels of equal texts, or remove the class"
            )


def _refuse_ids(train: Sequence[Example], classes: Sequence[str]) -> None:
    """Raise :class:`DataError` if more than ten classes have fewer than two training texts on average."""
    texts = len({text_key(example.text) for example in train})
    if len(classes) > _FEW_CLASSES and texts < 2 * len(classes):
        raise DataError(
            f"{len(classes)} classes have {texts} different training texts, fewer than two each: the labels "
            f"look like ids or free text (such as {classes[0]!r}). Give another label column, add examples "
            "or merge classes; for language modelling remove the column 'label'"
        )


def _report(
    examples: Sequence[Example],
    groups: Sequence[Group],
    splits: dict[str, list[Example]],
    place: Place,
    classes: Sequence[str],
) -> DataReport:
    repeats = len(examples) - len(groups)
    left_out = len(examples) - sum(len(part) for part in splits.values())
    conflicts = [group for group in groups if len({example.label for example in group}) > 1]
    counts = {"repeated_rows": repeats, "repeats_left_out": left_out, "conflicting_texts": len(conflicts)}
    notes = []
    if repeats:
        notes.append(
            f"{repeats} rows repeat the text of another row: equal texts are in one split, and {left_out} "
            "repeats were left out of validation and test"
        )
    if conflicts:
        one, *others = conflicts[0]
        other = next(example for example in others if example.label != one.label)
        both = [(place(example.id), classes[example.label or 0]) for example in (one, other)]
        pair = " and ".join(f"{where} {label!r}" for where, label in both)
        several = f"{len(conflicts)} texts have different labels in different rows"
        notes.append(f"{several} (such as {pair}); all are kept")
    return DataReport(counts, tuple(notes))
