"""Hub tasks whose repository has the splits, with rows in one of the forms of a user's file.

The test set is a split of the repository, in full or a sample. A missing validation set is taken from the
training data, in whole groups of examples that share a text. Samples are rows at equal distances: the same
rows everywhere, spread over the whole split, without reading the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bitrank_data.columns import layout_of
from bitrank_data.corpora.groups import connected, split_groups
from bitrank_data.errors import DataError
from bitrank_data.examples import TRAIN, DataReport, Example, Texts, row_name
from bitrank_data.hub_files import Read
from bitrank_data.layouts import LABEL, REMARK, Layout, LeftOut, Naming, Refused
from bitrank_data.rows import quoted
from bitrank_data.splitting import text_key

_VALIDATION, _TEST = "validation", "test"
_HELD_OUT = 1000  # examples that validate if the repository has no split for it, at most a tenth of train


def _same(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row


def _whole_key(example: Example) -> str:
    return text_key(example.key)


@dataclass(frozen=True)
class Form:
    """Rows of a repository and the examples that they make.

    ``columns`` are needed in the repository, and ``cells`` maps a row to the columns ``known`` of a user's
    file (:mod:`bitrank_data.layouts`); they decide the kind. ``classes`` are the names of the labels 0, 1, ….
    ``test`` is the split that is the test set, ``validation`` the one that validates (None: part of train).
    ``sizes`` are the largest sizes of splits, by the names that they have here. Examples with one ``group``
    are not split between train and validation.
    """

    columns: tuple[str, ...]
    known: tuple[str, ...]
    cells: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _same
    classes: tuple[str, ...] = ()
    test: str = _TEST
    validation: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    group: Callable[[Any], str] = _whole_key


def given_splits(name: str, form: Form, read: Read) -> Texts:
    """Texts of task ``name``. Raises :class:`DataError` for an invalid row, with its number and split."""
    data = read(form.columns)
    kind, layout = layout_of(form.known, Naming(), name)
    sources = {TRAIN: TRAIN, _VALIDATION: form.validation, _TEST: form.test}
    splits: dict[str, list[Example]] = {}
    report = DataReport()
    for split, source in sources.items():
        if source is not None:
            rows = sample(data[source], form.sizes.get(split))
            splits[split], empty = _examples(rows, layout, form, f"{name}-{source}")
            report += _left_out(empty, source)
    if form.validation is None:
        groups = connected(splits[TRAIN], lambda example: [form.group(example)])
        wanted = min(form.sizes.get(_VALIDATION, _HELD_OUT), max(1, len(splits[TRAIN]) // 10))
        splits |= {**split_groups(groups, lambda example: example.id, 0, wanted), _TEST: splits[_TEST]}
    return Texts(kind, splits, form.classes, report + _shared(splits), given_splits=True, place=row_name)


def sample(rows: Any, size: int | None) -> list[tuple[int, Mapping[str, Any]]]:
    """Rows of a split with their numbers: all, or ``size`` at equal distances."""
    if size is None or size >= len(rows):
        return list(enumerate(rows))
    numbers = [place * len(rows) // size for place in range(size)]
    return list(zip(numbers, rows.select(numbers), strict=True))


def _examples(
    rows: Iterable[tuple[int, Mapping[str, Any]]], layout: Layout, form: Form, prefix: str
) -> tuple[list[Example], list[int]]:
    """Examples of ``rows``, and the numbers of the rows that make none, from 1."""
    columns = layout.present(form.known)
    examples, empty = [], []
    for number, row in rows:
        given = form.cells(row)
        cells = {role: given.get(column) for role, column in columns.items()}
        try:
            fields = layout.parse(cells)
            label = _label(cells[LABEL], form.classes) if form.classes else None
        except LeftOut:
            empty.append(number + 1)
            continue
        except Refused as error:
            task, _, split = prefix.rpartition("-")
            raise DataError(f"{task}: the {error.role} of row {number + 1} of {split} {error}") from error
        fields.pop(REMARK, None)
        examples.append(layout.build(id=f"{prefix}-{number}", label=label, **fields))
    return examples, empty


def _label(value: Any, classes: tuple[str, ...]) -> int:
    if value not in range(len(classes)):
        numbers = f"0 to {len(classes) - 1}"
        raise Refused(LABEL, f"is {quoted(value)}, expected {numbers} ({', '.join(classes)}); remove the row")
    return int(value)


def _left_out(empty: list[int], split: str) -> DataReport:
    counts = {f"{split}_rows_without_text": len(empty)}
    note = f"{len(empty)} rows of {split} have no text and were left out"
    return DataReport(counts, (f"{note} (the first: row {empty[0]})",) if empty else ())


def _shared(splits: Mapping[str, list[Example]]) -> DataReport:
    """A count of test examples that are also in train."""
    trained = {text_key(example.key) for example in splits[TRAIN]}
    shared = sum(text_key(example.key) in trained for example in splits[_TEST])
    note = f"{shared} of {len(splits[_TEST])} test examples are also in the training data, as in the original"
    return DataReport({"test_texts_in_train": shared}, (note,) if shared else ())


def passage(example: Any) -> str:
    """The context of a question: all its questions are in one split."""
    return text_key(example.context)


def _article(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"source": row["article"], "target": row["highlights"]}


def _translation(row: Mapping[str, Any]) -> Mapping[str, Any]:
    pair = row["translation"] or {}
    return {"source": pair.get("en"), "target": pair.get("de")}


_PAIR = ("sentence1", "sentence2", LABEL)
_QUESTION = ("question", "context", "answers")
_GENERATED = {TRAIN: 10_000, _VALIDATION: 500, _TEST: 1000}  # texts are generated for every test example
# The labels of GLUE's test sets are hidden, so its validation sets are the test sets here.
MRPC = Form(_PAIR, _PAIR, classes=("not_equivalent", "equivalent"), test=_VALIDATION)
RTE = Form(_PAIR, _PAIR, classes=("entailment", "not_entailment"), test=_VALIDATION)
SQUAD = Form(_QUESTION, _QUESTION, test=_VALIDATION, group=passage)
CNN_DAILYMAIL = Form(
    ("article", "highlights"), ("source", "target"), _article, validation=_VALIDATION, sizes=_GENERATED
)
WMT14 = Form(("translation",), ("source", "target"), _translation, validation=_VALIDATION, sizes=_GENERATED)
