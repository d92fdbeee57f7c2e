"""Token sequences, cached on disk under a hash of data, tokenizer, length and code.

The kind of the task decides how a text becomes sequences (:mod:`bitrank_data.kinds`).

Special tokens are those that the tokenizer adds (BERT: [CLS] and [SEP]; Llama, Mistral and Gemma: BOS; GPT-2:
none). In language modelling every window begins with the tokens that the tokenizer puts before a text (BOS),
as in pretraining; tokens that it puts after a text (some add EOS) follow the last window of a document. BOS
counts in ``max_length`` and is never predicted. With BOS the first text token of a window is predicted, so
every token of a document is.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from bitrank_data.cache import build_once, cache_dir
from bitrank_data.errors import DataError
from bitrank_data.examples import SPLITS, TRAIN, DataReport, Example, Source
from bitrank_data.kinds import DataKind, data_kind
from bitrank_data.sequences import Cutting, Piece, TokenSplit, pack

_BATCH = 1000
_PROBES = 1000  # vocabulary tokens tried as a probe text


@dataclass(frozen=True)
class TokenisedTask:
    """All three splits of a task as tokens, with the values that batching needs."""

    name: str
    kind: str
    classes: tuple[str, ...]
    splits: dict[str, TokenSplit]
    pad_id: int
    report: DataReport = field(default_factory=DataReport)


def tokenise(
    source: Source, tokenizer: Any, max_length: int, special_tokens: bool = True, padding: int | None = None
) -> TokenisedTask:
    """Tokens of ``source`` for a Hugging Face ``tokenizer``, from the cache if present and unchanged.

    ``padding`` is the padding id if the model constrains it; the default is :func:`pad_id`.
    ``special_tokens=False`` omits the tokens that the tokenizer adds to a text. Raises :class:`DataError` if
    a split has no usable sequence, or ``max_length`` does not exceed the number of special tokens.
    """
    before, after = added_tokens(tokenizer) if special_tokens else ((), ())
    cutting = Cutting(max_length, special_tokens, before, after)
    if max_length <= len(before) + len(after):
        added = len(before) + len(after)
        room = f"max_length {max_length} has no room for text beside {added} special tokens"
        raise DataError(f"{room}; give {added + 1} or more")
    key = _key(source, tokenizer, cutting)
    place = cache_dir() / "tokens" / f"{source.name}-{key[:16]}"
    build_once(place, lambda folder: _write(folder, source, tokenizer, cutting))
    meta = json.loads((place / "meta.json").read_text())
    arrays = load_arrays((place / "tokens.safetensors").read_bytes())
    splits = {
        split: TokenSplit(
            arrays[f"{split}.tokens"],
            arrays[f"{split}.offsets"],
            arrays[f"{split}.labels"],
            meta["ids"][split],
            arrays[f"{split}.targets"],
            arrays[f"{split}.spans"],
            meta["records"][split],
        )
        for split in SPLITS
    }
    report = DataReport(meta["counts"], tuple(meta["notes"]))
    padding = pad_id(tokenizer) if padding is None else padding
    return TokenisedTask(source.name, source.kind, tuple(meta["classes"]), splits, padding, report)


def added_tokens(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that ``tokenizer`` adds before and after a text, detected on a probe text.

    Raises :class:`DataError` if no probe gives a token, or special tokens change the ids of the text.
    """
    special = set(tokenizer.all_special_tokens)
    vocabulary = list(tokenizer.get_vocab())[:_PROBES]
    candidates = ("a", "the", *(token for token in vocabulary if token not in special))
    for probe in candidates:
        plain = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
        if plain:
            break
    else:
        tried = ", ".join(candidates[:4])
        raise DataError(f"the tokenizer gives no token for {tried}, …; give the model its own tokenizer")
    whole = list(tokenizer(probe)["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start]), tuple(whole[start + len(plain) :])
    raise DataError(
        f"the tokenizer gives {probe!r} the ids {plain} without special tokens and {whole} with them, so it "
        "is unclear which it adds; give special_tokens=false"
    )


def pad_id(tokenizer: Any, vocabulary: int | None = None) -> int:
    """Padding id: the padding token, end of sequence, unknown token or 0, the first one available.

    It is below ``vocabulary``, the number of ids that the model has. The attention mask excludes padding, so
    any id the model can look up is valid; but a token added to the tokenizer may have no embedding row in the
    model.
    """
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id):
        if candidate is not None and (vocabulary is None or candidate < vocabulary):
            return int(candidate)
    return 0


def _key(source: Source, tokenizer: Any, cutting: Cutting) -> str:
    """Hash of everything that determines the tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    for passing in ("truncation", "padding"):
        state.pop(passing, None)  # state of the last call, not part of the vocabulary
    vocabulary = json.dumps(state, sort_keys=True)
    # transformers stores these beside the vocabulary and uses them in each call.
    options = [str(getattr(tokenizer, name, None)) for name in ("truncation_side", "split_special_tokens")]
    how = json.dumps(asdict(cutting), sort_keys=True)
    code = _code() + _code_of(data_kind(source.kind))
    text = "\0".join((source.name, source.kind, source.fingerprint(), vocabulary, *options, how, code))
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _code() -> str:
    """Hash of this package's sources, so that another version of the code does not reuse its cache."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _code_of(kind: DataKind) -> str:
    """Hash of the file that defines how ``kind`` is encoded, if it is outside this package; else empty."""
    path = Path(inspect.getfile(kind.encode)).resolve()
    if path.is_relative_to(Path(__file__).resolve().parent) or not path.is_file():
        return ""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(folder: Path, source: Source, tokenizer: Any, cutting: Cutting) -> None:
    texts, kind = source.load(), data_kind(source.kind)
    arrays: dict[str, np.ndarray] = {}
    ids: dict[str, list[str]] = {}
    records: dict[str, dict[str, Any]] = {}
    lost: dict[str, int] = {}
    left_out: list[str] = []
    for split in SPLITS:
        packed, counts, without = _tokenise_split(texts.splits[split], tokenizer, cutting, kind)
        left_out += without
        if not len(packed):
            reason = f" ({_left_out_note(without, kind)})" if without else ""
            needed = "the task needs more or longer texts"
            raise DataError(f"{source.name}: no text left for {split}{reason}; {needed}")
        _refuse_absent(source.name, split, packed, texts.classes)
        parts = {"tokens": packed.tokens, "offsets": packed.offsets, "labels": packed.labels_N}
        parts |= {"targets": packed.targets, "spans": packed.spans}
        arrays |= {f"{split}.{part}": array for part, array in parts.items()}
        ids[split], records[split] = packed.ids, _records(kind, split, texts.splits[split], packed)
        lost = {name: lost.get(name, 0) + count for name, count in counts.items()}
    (folder / "tokens.safetensors").write_bytes(save_arrays(arrays))
    report = texts.report + DataReport(lost, _lost_notes(lost, cutting.max_length))
    if left_out:
        report += DataReport(notes=(_left_out_note(left_out, kind),))
    meta = {
        "classes": texts.classes,
        "ids": ids,
        "records": records,
        "counts": report.counts,
        "notes": report.notes,
    }
    (folder / "meta.json").write_text(json.dumps(meta))


def _records(kind: DataKind, split: str, examples: list[Example], packed: TokenSplit) -> dict[str, Any]:
    """Texts of the examples of ``split`` by id, of those with a sequence; none for training."""
    if kind.record is None or split == TRAIN:
        return {}
    present = set(packed.ids)
    return {example.id: kind.record(example) for example in examples if example.id in present}


def _refuse_absent(name: str, split: str, packed: TokenSplit, classes: tuple[str, ...]) -> None:
    """Raise :class:`DataError` if a split lacks a class, which then is not learned or not evaluated."""
    present = {*packed.labels_N.tolist(), *np.unique(packed.targets).tolist()}
    absent = sorted(set(range(len(classes))) - present)
    if absent:
        missing = classes[absent[0]]
        remedy = "add texts of this class there"
        raise DataError(f"{name}: the class {missing!r} has no text in {split}; {remedy}")


def _left_out_note(ids: list[str], kind: DataKind) -> str:
    return f"{len(ids)} {kind.left_out} (the first: example {ids[0]})"


def _lost_notes(lost: dict[str, int], max_length: int) -> tuple[str, ...]:
    notes = []
    if cut := lost.get("texts_cut"):
        beyond = f"longer than max_length {max_length} and were cut there"
        notes.append(f"{cut} of {lost['texts']} texts are {beyond}")
    return tuple(notes)


def _tokenise_split(
    examples: list[Example], tokenizer: Any, cutting: Cutting, kind: DataKind
) -> tuple[TokenSplit, dict[str, int], list[str]]:  # fmt: skip
    """Sequences of ``examples``, numbers of texts, and the ids of examples without a sequence.

    The numbers are those of all texts, of truncated ones, and of those without a sequence.
    """
    sequences: list[Piece] = []
    ids: list[str] = []
    labels: list[int] = []
    without: list[str] = []
    counts = {"texts": len(examples), "texts_cut": 0}
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        encoded, cut = kind.encode(batch, tokenizer, cutting)
        counts["texts_cut"] += cut
        for example, pieces in zip(batch, encoded, strict=True):
            without += [] if pieces else [example.id]
            sequences += pieces
            ids += [example.id] * len(pieces)
            labels += [example.label] * len(pieces) if example.label is not None else []
    counts["texts_without_tokens"] = len(without)
    return pack(sequences, np.asarray(labels, dtype=np.int64), ids), counts, without
