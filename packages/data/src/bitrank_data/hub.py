"""Tasks of the Hugging Face hub by name, from the hub itself or from a local folder in hub format.

The labels of SST-2's test set are hidden. Its 872 validation sentences are therefore the test set, and 1,000
training sentences, chosen once, are the validation set; all copies of a sentence stay together. The official
sentences are kept, and a note counts test sentences that are also in train. WikiText-2 is cut into articles
at its level-one headings; the number of an article is its id. Alpaca and Dolly have training data only:
subsets of their rows, chosen by the hash of the instruction, are the three splits. Tasks whose repository has
the splits are in :mod:`bitrank_data.hub_official_splits`, and :mod:`bitrank_data.hub_files` reads the files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bitrank_data.conversations import instruction_layout
from bitrank_data.corpora.groups import connected, split_groups
from bitrank_data.errors import DataError
from bitrank_data.examples import SPLITS, TRAIN, DataReport, Example, Source, Texts, row_name
from bitrank_data.hub_files import LOCAL_COPY, HubFiles, Read, Repository
from bitrank_data.hub_official_splits import CNN_DAILYMAIL, MRPC, RTE, SQUAD, WMT14, given_splits
from bitrank_data.kinds import (
    CLASSIFICATION,
    INSTRUCTION,
    LANGUAGE_MODELLING,
    QUESTION_ANSWERING,
    SEQUENCE_TO_SEQUENCE,
)
from bitrank_data.layouts import LeftOut, Refused
from bitrank_data.rows import quoted
from bitrank_data.splitting import groups_of, text_key

_VALIDATION = 1000
# Sizes of the subsets of instruction data.
_SUBSET = {"test": 1000, "validation": 200, TRAIN: 2000}


def hub_source(name: str, folder: Path | None = None, commit: str | None = None) -> Source:
    """The hub task ``name``.

    ``folder`` holds a copy (``save_to_disk``, or train/validation/test data files). ``commit`` is that of the
    repository; by default that of the cached copy, which is downloaded if there is none. Raises
    :class:`DataError` if ``folder`` is none: the library datasets would read a repository of that name.
    """
    if folder is not None and not folder.is_dir():
        problem = "it is a file" if folder.exists() else "there is no such folder"
        raise DataError(f"cannot load {name} from the local folder {folder}: {problem}; {LOCAL_COPY}")
    task = HUB[name]
    files = HubFiles(name, task.repository, folder, commit)
    return Source(name, task.kind, files.fingerprint, partial(task.load, files.read), task.about)


def hub_repository(name: str) -> str:
    """The repository of datasets on the hub that holds task ``name``."""
    return HUB[name].repository.name


def _sst2(read: Read) -> Texts:
    data = read(("sentence", "label"))
    train, test = (_sentences(data[split], split) for split in ("train", "validation"))
    wanted = min(_VALIDATION, len(train) // 10)
    parts: dict[str, list[Example]] = {"train": [], "validation": [], "test": test}
    for group in groups_of(train):
        parts["validation" if len(parts["validation"]) < wanted else "train"] += group
    trained = {text_key(example.text) for example in train}
    shared = sum(text_key(example.text) in trained for example in test)
    note = f"{shared} of {len(test)} test sentences are also in the training data, as in the original"
    report = DataReport({"test_texts_in_train": shared}, (note,) if shared else ())
    return Texts(CLASSIFICATION, parts, ("negative", "positive"), report, place=row_name)


def _sentences(rows: Iterable[dict[str, Any]], split: str) -> list[Example]:
    examples = []
    for number, row in enumerate(rows):
        sentence, label = row["sentence"], row["label"]
        if not isinstance(sentence, str) or not sentence.strip():
            raise DataError(f"sst2: row {number + 1} of {split} has no sentence; remove it")
        if label not in (0, 1):
            problem = f"has the label {quoted(label)}, expected 0 or 1; remove it"
            raise DataError(f"sst2: row {number + 1} of {split} {problem}")
        examples.append(Example(f"sst2-{split}-{number}", sentence.strip(), int(label)))
    return examples


def _wikitext2(read: Read) -> Texts:
    data = read(("text",))
    # A null line counts as empty: in this layout lines without text separate paragraphs.
    splits = {}
    for split in SPLITS:
        splits[split] = wikitext_articles((row["text"] or "" for row in data[split]), split)
    return Texts(LANGUAGE_MODELLING, splits)


def wikitext_articles(lines: Iterable[str], split: str) -> list[Example]:
    """Join WikiText's lines into articles, each starting at a level-one heading `` = Title = ``."""
    articles: list[list[str]] = [[]]
    for line in lines:
        if re.fullmatch(r" = [^=](?:.*[^=])? = \n?", line):
            articles.append([])
        articles[-1].append(line)
    texts = ["".join(article).strip() for article in articles]
    filled = [text for text in texts if text]
    return [Example(f"wikitext2-{split}-{number}", text) for number, text in enumerate(filled)]


def _instructions(name: str, given: str, output: str, read: Read) -> Texts:
    """A subset of instructions; the columns are ``instruction``, ``given`` (an input) and ``output``.

    Rows with one instruction and input are in one split. Of fewer rows than the subset has, a tenth each is
    for test and validation. Rows without an instruction or output are left out and counted.
    """
    rows = read(("instruction", given, output))[TRAIN]
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
    report = DataReport({"rows_without_text": len(empty)}, notes)
    return Texts(INSTRUCTION, splits, (), report, place=row_name)


@dataclass(frozen=True)
class HubTask:
    """A task whose data are in a repository of the hub; ``load`` makes its texts of what it reads."""

    kind: str
    about: str
    repository: Repository
    load: Callable[[Read], Texts]


_LABELLED = (TRAIN, "validation")  # splits whose labels are published


HUB: dict[str, HubTask] = {
    "sst2": HubTask(
        CLASSIFICATION,
        "movie-review phrases, two classes",
        Repository("stanfordnlp/sst2", "data/{split}-*.parquet", _LABELLED),
        _sst2,
    ),
    "wikitext2": HubTask(
        LANGUAGE_MODELLING,
        "Wikipedia articles",
        Repository("Salesforce/wikitext", "wikitext-2-raw-v1/{split}-*.parquet", SPLITS),
        _wikitext2,
    ),
    "alpaca": HubTask(
        INSTRUCTION,
        "3,200 instructions of Alpaca",
        Repository("tatsu-lab/alpaca", "data/{split}-*.parquet", (TRAIN,)),
        partial(_instructions, "alpaca", "input", "output"),
    ),
    "dolly": HubTask(
        INSTRUCTION,
        "3,200 instructions of Dolly",
        Repository("databricks/databricks-dolly-15k", "databricks-dolly-15k.jsonl", (TRAIN,)),
        partial(_instructions, "dolly", "context", "response"),
    ),
    "mrpc": HubTask(
        CLASSIFICATION,
        "pairs of news sentences, paraphrases or not",
        Repository("nyu-mll/glue", "mrpc/{split}-*.parquet", _LABELLED),
        partial(given_splits, "mrpc", MRPC),
    ),
    "rte": HubTask(
        CLASSIFICATION,
        "pairs of texts, the first implies the second or not",
        Repository("nyu-mll/glue", "rte/{split}-*.parquet", _LABELLED),
        partial(given_splits, "rte", RTE),
    ),
    "squad": HubTask(
        QUESTION_ANSWERING,
        "questions about Wikipedia passages",
        Repository("rajpurkar/squad", "plain_text/{split}-*.parquet", _LABELLED),
        partial(given_splits, "squad", SQUAD),
    ),
    "squad_v2": HubTask(
        QUESTION_ANSWERING,
        "questions about Wikipedia passages, some without an answer",
        Repository("rajpurkar/squad_v2", "squad_v2/{split}-*.parquet", _LABELLED),
        partial(given_splits, "squad_v2", SQUAD),
    ),
    "cnn_dailymail": HubTask(
        SEQUENCE_TO_SEQUENCE,
        "a sample of news articles with highlights as summary",
        Repository("abisee/cnn_dailymail", "3.0.0/{split}-*.parquet", SPLITS),
        partial(given_splits, "cnn_dailymail", CNN_DAILYMAIL),
    ),
    "wmt14": HubTask(
        SEQUENCE_TO_SEQUENCE,
        "a sample of English sentences with a German translation",
        Repository("wmt/wmt14", "de-en/{split}-*.parquet", SPLITS),
        partial(given_splits, "wmt14", WMT14),
    ),
}
