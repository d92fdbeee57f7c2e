"""Token sequences, cached on disk under a hash of data, tokenizer, length and code.

Classification: one sequence per example, truncated to ``max_length``. Language modelling: each document is
cut into windows of ``max_length`` tokens; a window keeps the id of its document, so that losses can be summed
per document for paired tests.

Special tokens are those that the tokenizer adds (BERT: [CLS] and [SEP]; Llama, Mistral and Gemma: BOS; GPT-2:
none). In language modelling every window begins with the tokens that the tokenizer puts before a text (BOS),
as in pretraining; tokens that it puts after a text (some add EOS) follow the last window of a document. BOS
counts in ``max_length`` and is never predicted. With BOS the first text token of a window is predicted, so
every token of a document is.
"""

from __future__ import annotations

import hashlib
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
from bitrank_data.examples import SPLITS, DataReport, Example, Kind, Source

Encoded = list[list[int]]
_BATCH = 1000
_PROBES = 1000  # vocabulary tokens tried as a probe text


@dataclass(frozen=True)
class TokenSplit:
    """Token sequences of one split; sequence i is ``tokens[offsets[i]:offsets[i + 1]]``.

    ``ids[i]`` is the example of sequence i. ``labels_N`` is empty for language modelling.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    labels_N: np.ndarray
    ids: list[str]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths_N(self) -> np.ndarray:
        return np.diff(self.offsets)

    def sequence(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def select(self, indices: np.ndarray) -> TokenSplit:
        """Split with only the sequences ``indices``, in that order."""
        sequences = [self.sequence(i) for i in indices]
        labels = self.labels_N[indices] if len(self.labels_N) else self.labels_N
        return _pack(sequences, labels, [self.ids[i] for i in indices])


@dataclass(frozen=True)
class TokenisedTask:
    """All three splits of a task as tokens, with the values that batching needs."""

    name: str
    kind: Kind
    classes: tuple[str, ...]
    splits: dict[str, TokenSplit]
    pad_id: int
    report: DataReport = field(default_factory=DataReport)


@dataclass(frozen=True)
class Cutting:
    """Conversion of texts to sequences: maximum length, and special tokens before and after a text.

    Without special tokens, ``before`` and ``after`` are empty.
    """

    max_length: int
    special_tokens: bool = True
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


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
    text = "\0".join((source.name, source.kind, source.fingerprint(), vocabulary, *options, how, _code()))
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _code() -> str:
    """Hash of this package's sources, so that another version of the code does not reuse its cache."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _write(folder: Path, source: Source, tokenizer: Any, cutting: Cutting) -> None:
    texts = source.load()
    arrays: dict[str, np.ndarray] = {}
    ids: dict[str, list[str]] = {}
    lost: dict[str, int] = {}
    for split in SPLITS:
        packed, counts = _tokenise_split(texts.splits[split], tokenizer, cutting, source.kind)
        if not len(packed):
            raise DataError(f"{source.name}: no text left for {split}; the task needs more or longer texts")
        _refuse_absent(source.name, split, packed, texts.classes)
        parts = {"tokens": packed.tokens, "offsets": packed.offsets, "labels": packed.labels_N}
        arrays |= {f"{split}.{part}": array for part, array in parts.items()}
        ids[split] = packed.ids
        lost = {name: lost.get(name, 0) + count for name, count in counts.items()}
    (folder / "tokens.safetensors").write_bytes(save_arrays(arrays))
    report = texts.report + DataReport(lost, _lost_notes(lost, cutting.max_length))
    meta = {
        "classes": texts.classes,
        "ids": ids,
        "counts": report.counts,
        "notes": report.notes,
    }
    (folder / "meta.json").write_text(json.dumps(meta))


def _refuse_absent(name: str, split: str, packed: TokenSplit, classes: tuple[str, ...]) -> None:
    """Raise :class:`DataError` if a split lacks a class, which then is not learned or not evaluated."""
    absent = sorted(set(range(len(classes))) - set(packed.labels_N.tolist()))
    if absent:
        missing = classes[absent[0]]
        remedy = "add texts of this class there"
        raise DataError(f"{name}: the class {missing!r} has no text in {split}; {remedy}")


def _lost_notes(lost: dict[str, int], max_length: int) -> tuple[str, ...]:
    notes = []
    if cut := lost.get("texts_cut"):
        beyond = f"longer than max_length {max_length} and were cut there"
        notes.append(f"{cut} of {lost['texts']} texts are {beyond}")
    if empty := lost.get("texts_without_tokens"):
        notes.append(f"{empty} texts have too few tokens to learn from and were left out")
    return tuple(notes)


def _tokenise_split(
    examples: list[Example], tokenizer: Any, cutting: Cutting, kind: Kind
) -> tuple[TokenSplit, dict[str, int]]:  # fmt: skip
    """Sequences of ``examples``, and the numbers of texts: all, truncated, and without a sequence."""
    sequences: list[np.ndarray] = []
    ids: list[str] = []
    labels: list[int] = []
    counts = {"texts": len(examples), "texts_cut": 0, "texts_without_tokens": 0}
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        encoded, cut = _encode(batch, tokenizer, cutting, kind)
        counts["texts_cut"] += cut
        for example, tokens in zip(batch, encoded, strict=True):
            pieces = _pieces(tokens, cutting, kind)
            counts["texts_without_tokens"] += not pieces
            sequences += pieces
            ids += [example.id] * len(pieces)
            labels += [example.label] * len(pieces) if example.label is not None else []
    return _pack(sequences, np.asarray(labels, dtype=np.int64), ids), counts


def _encode(batch: list[Example], tokenizer: Any, cutting: Cutting, kind: Kind) -> tuple[Encoded, int]:
    """Token ids of each text, truncated only for classification; and the number of truncated texts."""
    texts = [example.text for example in batch]
    # Texts may exceed the model's window: they are cut into windows later, so ``verbose=False`` hides that
    # warning.
    add = cutting.special_tokens and kind == "classification"
    whole = list(tokenizer(texts, add_special_tokens=add, truncation=False, verbose=False)["input_ids"])
    cut = sum(len(tokens) > cutting.max_length for tokens in whole) if kind == "classification" else 0
    if not cut:
        return whole, 0
    words = {"add_special_tokens": add, "truncation": True, "max_length": cutting.max_length}
    return list(tokenizer(texts, **words)["input_ids"]), cut


def _pieces(tokens: list[int], cutting: Cutting, kind: Kind) -> list[np.ndarray]:
    """Sequences of one text: the text for classification, its windows for language modelling.

    Empty if there is nothing to predict.
    """
    if kind == "classification":
        text = len(tokens) - len(cutting.before) - len(cutting.after)
        return [np.asarray(tokens, dtype=np.int32)] if text > 0 else []
    if not tokens:
        return []
    body, room = [*tokens, *cutting.after], cutting.max_length - len(cutting.before)
    windows = [[*cutting.before, *body[start : start + room]] for start in range(0, len(body), room)]
    # A window of one token has no prediction target.
    return [np.asarray(window, dtype=np.int32) for window in windows if len(window) > 1]


def _pack(sequences: list[np.ndarray], labels_N: np.ndarray, ids: list[str]) -> TokenSplit:
    tokens = np.concatenate(sequences) if sequences else np.zeros(0, dtype=np.int32)
    offsets = np.cumsum([0, *(len(sequence) for sequence in sequences)], dtype=np.int64)
    return TokenSplit(tokens, offsets, labels_N, ids)
