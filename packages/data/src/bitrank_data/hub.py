"""Tasks of the Hugging Face hub, from the hub itself or from a local folder in hub format.

The labels of SST-2's test set are hidden. Its 872 validation sentences are therefore the test set, and 1,000
training sentences, chosen once, are the validation set; all copies of a sentence stay together. The official
sentences are kept, and a note counts test sentences that are also in train. WikiText-2 is cut into articles
at its level-one headings; the number of an article is its id. Alpaca and Dolly have training data only:
subsets of their rows, chosen by the hash of the instruction, are the three splits.

Files of the hub are read from its own cache by commit. So texts and fingerprint belong to one commit, and a
commit stays readable after the repository has moved on, without network access too.
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
_BUILDERS = {".parquet": "parquet", ".jsonl": "json"}  # of the library datasets, by suffix
# Sizes of the subsets of instruction data.
_SUBSET = {"test": 1000, "validation": 200, TRAIN: 2000}
_LOCAL_COPY = (
    "give a local copy with --data FOLDER (saved with save_to_disk, or train/validation/test files in CSV, "
    "JSONL or Parquet)"
)


def hub_source(name: str, folder: Path | None = None, commit: str | None = None) -> Source:
    """The hub task ``name``.

    ``folder`` holds a copy (``save_to_disk``, or train/validation/test data files). ``commit`` is that of the
    repository; by default that of the cached copy, which is downloaded if there is none.
    """
    task = HUB[name]
    origin = Origin(folder, commit)
    return Source(
        name, task.kind, partial(_fingerprint, name, origin), partial(task.load, origin), task.about
    )


def hub_repository(name: str) -> str:
    """The repository of datasets on the hub that holds task ``name``."""
    return HUB[name].repository


@dataclass(frozen=True)
class Origin:
    """A local ``folder`` with a copy of the data, or else a ``commit`` of the hub's repository."""

    folder: Path | None = None
    commit: str | None = None


def _fingerprint(name: str, origin: Origin) -> str:
    folder = origin.folder
    if folder is None:
        task = HUB[name]
        return f"hub:{task.repository}:{task.files}@{origin.commit or _current_commit(name)}"
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _sst2(origin: Origin) -> Texts:
    data = _dataset("sst2", origin, ("sentence", "label"))
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


def _wikitext2(origin: Origin) -> Texts:
    data = _dataset("wikitext2", origin, ("text",))
    # A null line counts as empty: in this layout lines without text separate paragraphs.
    splits = {}
    for split in SPLITS:
        splits[split] = wikitext_articles((row["text"] or "" for row in data[split]), split)
    return Texts(LANGUAGE_MODELLING, splits)


def wikitext_articles(lines: Iterable[str], split: str) -> list[Example]:
    """Join WikiText's lines into articles, each starting at a level-one heading `` = Title = ``."""
    articles: list[list[str]] = [[]]
    for line in lines:
        if re.fullmatch(r" = [^=].*[^=] = \n?", line):
            articles.append([])
        articles[-1].append(line)
    texts = ["".join(article).strip() for article in articles]
    filled = [text for text in texts if text]
    return [Example(f"wikitext2-{split}-{number}", text) for number, text in enumerate(filled)]


def _instructions(name: str, given: str, output: str, origin: Origin) -> Texts:
    """A subset of instructions; the columns are ``instruction``, ``given`` (an input) and ``output``.

    Rows with one instruction and input are in one split. Of fewer rows than the subset has, a tenth each is
    for test and validation. Rows without an instruction or output are left out and counted.
    """
    rows = _dataset(name, origin, ("instruction", given, output))[TRAIN]
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


def _dataset(name: str, origin: Origin, columns: tuple[str, ...]) -> Any:
    import datasets

    folder = origin.folder
    commit = None if folder else origin.commit or _current_commit(name)
    try:
        if folder is None:
            builder = _BUILDERS[Path(HUB[name].files).suffix]
            data = datasets.load_dataset(builder, data_files=_files(name, commit))
        elif (folder / "dataset_dict.json").is_file():
            data = datasets.load_from_disk(str(folder))
        else:
            data = datasets.load_dataset(str(folder))
    except DataError:
        raise
    except Exception as error:
        place = f"the local folder {folder}" if folder else _place(name, commit)
        raise _not_loaded(name, place, error) from error
    _check(name, data, columns)
    return data


def _current_commit(name: str) -> str:
    """The commit of the cached copy of ``name``, which is downloaded if there is none."""
    repository = HUB[name].repository
    if (commit := cached_commit("datasets", repository)) is None:
        return _snapshot(name, None).name
    return commit


def _files(name: str, commit: str | None) -> dict[str, list[str]]:
    """Files of each split of task ``name`` at ``commit``."""
    folder, task = _snapshot(name, commit), HUB[name]
    files = {
        split: sorted(str(path) for path in folder.glob(task.files.format(split=split)))
        for split in task.splits
    }
    for split, found in files.items():
        if not found:
            pattern = task.files.format(split=split)
            raise DataError(f"{name}: {_place(name, commit)} has no {pattern}; {_LOCAL_COPY}")
    return files


def _snapshot(name: str, commit: str | None) -> Path:
    """The folder of ``commit`` in the hub's own cache; downloads files that are absent there."""
    from huggingface_hub import snapshot_download

    task = HUB[name]
    patterns = [task.files.format(split=split) for split in task.splits]
    try:
        return Path(
            snapshot_download(task.repository, repo_type="dataset", revision=commit, allow_patterns=patterns)
        )
    except (OSError, ValueError) as error:
        raise _not_loaded(name, _place(name, commit), error) from error


def _place(name: str, commit: str | None) -> str:
    return f"{HUB[name].repository}{f'@{commit}' if commit else ''} on the hub"


def _not_loaded(name: str, place: str, error: Exception) -> DataError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(f"cannot load {name} from {place}: {reason}; {_LOCAL_COPY}")


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
    """A task whose data are in a repository of the hub.

    ``files`` is the pattern of the files of a split there, ``splits`` the splits that are read. ``load``
    reads them.
    """

    kind: str
    about: str
    repository: str
    files: str
    splits: tuple[str, ...]
    load: Callable[[Origin], Texts]


HUB: dict[str, HubTask] = {
    "sst2": HubTask(
        CLASSIFICATION,
        "movie-review phrases, two classes",
        "stanfordnlp/sst2",
        "data/{split}-*.parquet",
        ("train", "validation"),
        _sst2,
    ),
    "wikitext2": HubTask(
        LANGUAGE_MODELLING,
        "Wikipedia articles",
        "Salesforce/wikitext",
        "wikitext-2-raw-v1/{split}-*.parquet",
        SPLITS,
        _wikitext2,
    ),
    "alpaca": HubTask(
        INSTRUCTION,
        "3,200 instructions of Alpaca",
        "tatsu-lab/alpaca",
        "data/{split}-*.parquet",
        (TRAIN,),
        partial(_instructions, "alpaca", "input", "output"),
    ),
    "dolly": HubTask(
        INSTRUCTION,
        "3,200 instructions of Dolly",
        "databricks/databricks-dolly-15k",
        "databricks-dolly-15k.jsonl",
        (TRAIN,),
        partial(_instructions, "dolly", "context", "response"),
    ),
}
