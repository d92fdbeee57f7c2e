"""Tasks of the Hugging Face hub, from the hub itself or from a local folder in hub format.

The labels of SST-2's test set are hidden. Its 872 validation sentences are therefore the test set, and 1,000
training sentences, chosen once, are the validation set; all copies of a sentence stay together. The official
sentences are kept, and a note counts test sentences that are also in train. WikiText-2 is cut into articles
at its level-one headings; the number of an article is its id. Alpaca and Dolly have training data only:
subsets of their rows, chosen by the hash of the instruction, are the three splits.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bitrank_data.conversations import instruction_layout
from bitrank_data.corpora.groups import connected, split_groups
from bitrank_data.errors import DataError
from bitrank_data.examples import SPLITS, TRAIN, DataReport, Example, Source, Texts
from bitrank_data.hub_cache import cached_commit
from bitrank_data.kinds import CLASSIFICATION, INSTRUCTION, LANGUAGE_MODELLING
from bitrank_data.layouts import LeftOut, Refused
from bitrank_data.splitting import groups_of, text_key

_VALIDATION = 1000
# Sizes of the subsets of instruction data.
_SUBSET = {"test": 1000, "validation": 200, TRAIN: 2000}


def hub_source(name: str, folder: Path | None = None) -> Source:
    """The hub task ``name``.

    ``folder`` holds a copy (``save_to_disk``, or train/validation/test data files).
    """
    task = HUB[name]
    return Source(
        name, task.kind, partial(_fingerprint, name, folder), partial(task.load, folder), task.about
    )


def hub_repository(name: str) -> str:
    """The repository of datasets on the hub that holds task ``name``."""
    return HUB[name].repository


def _fingerprint(name: str, folder: Path | None) -> str:
    if folder is None:
        repository, config = HUB[name].repository, HUB[name].config
        if cached_commit("datasets", repository) is None:
            _dataset(name, None, ())  # downloaded here, because the commit is known only after the download
        return f"hub:{repository}:{config}@{cached_commit('datasets', repository)}"
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _sst2(folder: Path | None) -> Texts:
    data = _dataset("sst2", folder, ("sentence", "label"))
    train, test = (_sentences(data[split], split) for split in ("train", "validation"))
    wanted = min(_VALIDATION, len(train) // 10)
    parts: dict[str, list[Example]] = {"train": [], "validation": [], "test": test}
    for group in groups_of(train):
        parts["validation" if len(parts["validation"]) < wanted else "train"] += group
    trained = {text_key(example.text) for example in train}
    shared = sum(text_key(example.text) in trained for example in test)
    note = f"{shared} of {len(test)} test sentences are also in the training data, as in the original"
    report = DataReport({"test_texts_in_train": shared}, (note,) if shared else ())
    return Texts(CLASSIFICATION, parts, ("negative", "positive"), report)


def _sentences(rows: Iterable[dict[str, Any]], split: str) -> list[Example]:
    examples = []
    for number, row in enumerate(rows):
        sentence, label = row["sentence"], row["label"]
        if not isinstance(sentence, str) or not sentence.strip():
            raise DataError(f"sst2: row {number + 1} of {split} has no sentence; remove it")
        if label not in (0, 1):
            problem = f"has the label {label!r}, expected 0 or 1; remove it"
            raise DataError(f"sst2: row {number + 1} of {split} {problem}")
        examples.append(Example(f"sst2-{split}-{number}", sentence.strip(), int(label)))
    return examples


def _wikitext2(folder: Path | None) -> Texts:
    data = _dataset("wikitext2", folder, ("text",))
    # A null line counts as empty: in this layout lines without text separate paragraphs.
    splits = {split: wikitext_articles((row["text"] or "" for row in data[split]), split) for split in SPLITS}
    return Texts(LANGUAGE_MODELLING, splits)


def wikitext_articles(lines: Iterable[str], split: str) -> list[Example]:
    """Join WikiText's lines into articles, each starting at a level-one heading `` = Title = ``."""
    articles: list[list[str]] = [[]]
    for line in lines:
        if re.fullmatch(r" = [^=].*[^=] = \n?", line):
            articles.append([])
        articles[-1].append(line)
    texts = ["".join(article).strip() for article in articles]
    return [Example(f"wikitext2-{split}-{number}", text) for number, text in enumerate(t for t in texts if t)]


def _instructions(name: str, given: str, output: str, folder: Path | None) -> Texts:
    """A subset of instructions; the columns are ``instruction``, ``given`` (an input) and ``output``.

    Rows with one instruction and input are in one split. Of fewer rows than the subset has, a tenth each is
    for test and validation. Rows without an instruction or output are left out and counted.
    """
    rows = _dataset(name, folder, ("instruction", given, output))[TRAIN]
    layout = instruction_layout(output, given)
    examples, empty = [], []
    for number, row in enumerate(rows):
        cells = {role: row[column] for role, column in layout.present(list(row)).items()}
        try:
            fields = layout.parse(cells)
        except LeftOut:
            empty.append(number + 1)
            continue
        except Refused as error:
            raise DataError(f"{name}: the {error.role} of row {number + 1} {error}") from error
        examples.append(layout.build(id=f"{name}-{number}", label=None, **fields))
    sizes = {split: min(size, max(1, len(examples) // 10)) for split, size in _SUBSET.items()}
    groups = connected(examples, lambda example: [text_key(example.key)])
    splits = split_groups(groups, lambda example: example.id, sizes["test"], sizes["validation"])
    splits[TRAIN] = splits[TRAIN][: _SUBSET[TRAIN]]
    note = f"{len(empty)} of {len(rows)} rows have no instruction or output and were left out"
    notes = (f"{note} (the first: row {empty[0]})",) if empty else ()
    return Texts(INSTRUCTION, splits, (), DataReport({"rows_without_text": len(empty)}, notes))


def _dataset(name: str, folder: Path | None, columns: tuple[str, ...]) -> Any:
    import datasets

    path, config = HUB[name].repository, HUB[name].config
    try:
        if folder is None:
            data = datasets.load_dataset(path, config)
        elif (folder / "dataset_dict.json").is_file():
            data = datasets.load_from_disk(str(folder))
        else:
            data = datasets.load_dataset(str(folder))
    except Exception as error:
        where = f"the local folder {folder}" if folder else f"{path} on the hub"
        raise DataError(
            f"cannot load {name} from {where}: {str(error).splitlines()[0]}; give a local copy with --data "
            "FOLDER (saved with save_to_disk, or train/validation/test files in CSV, JSONL or Parquet)"
        ) from error
    _check(name, data, columns)
    return data


def _check(name: str, data: Any, columns: tuple[str, ...]) -> None:
    for split in HUB[name].splits:
        if split not in data:
            raise DataError(f"{name} needs a split {split!r}; found {', '.join(data)}")
        missing = [column for column in columns if column not in data[split].column_names]
        if missing:
            raise DataError(
                f"{name} needs the column {missing[0]!r} in {split}; found "
                f"{', '.join(data[split].column_names)}"
            )


@dataclass(frozen=True)
class HubTask:
    """A task whose data are in a repository of the hub, of which it reads ``splits``.

    ``load`` reads them from a folder, or from the hub without one.
    """

    kind: str
    about: str
    repository: str
    config: str | None
    load: Callable[[Path | None], Texts]
    splits: tuple[str, ...] = SPLITS


HUB: dict[str, HubTask] = {
    "sst2": HubTask(
        CLASSIFICATION,
        "movie-review phrases, two classes",
        "stanfordnlp/sst2",
        None,
        _sst2,
        (TRAIN, "validation"),
    ),
    "wikitext2": HubTask(
        LANGUAGE_MODELLING, "Wikipedia articles", "Salesforce/wikitext", "wikitext-2-raw-v1", _wikitext2
    ),
    "alpaca": HubTask(
        INSTRUCTION,
        "3,200 instructions of Alpaca",
        "tatsu-lab/alpaca",
        None,
        partial(_instructions, "alpaca", "input", "output"),
        (TRAIN,),
    ),
    "dolly": HubTask(
        INSTRUCTION,
        "3,200 instructions of Dolly",
        "databricks/databricks-dolly-15k",
        None,
        partial(_instructions, "dolly", "context", "response"),
        (TRAIN,),
    ),
}
