"""Texts tokenised once and kept on disk under a hash of data, tokenizer, length and code version.

Classification: one sequence per example, cut at ``max_length``. Language modelling: each document is cut into windows of
``max_length`` tokens; a window keeps the id of its document, so losses can be summed per document for paired tests.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from bitrank_data.errors import DataError
from bitrank_data.examples import SPLITS, Example, Kind, Source
from bitrank_data.store import build_once, cache_dir

VERSION = "1"  # of the layout on disk and of the way texts are cut
_BATCH = 1000


@dataclass(frozen=True)
class TokenSplit:
    """Token sequences of one split. Sequence i is ``tokens[offsets[i]:offsets[i + 1]]`` and belongs to example ``ids[i]``.

    ``labels_N`` is empty for language modelling.
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
        """The same split with the sequences ``indices`` alone, in that order."""
        sequences = [self.sequence(i) for i in indices]
        labels = self.labels_N[indices] if len(self.labels_N) else self.labels_N
        return _pack(sequences, labels, [self.ids[i] for i in indices])


@dataclass(frozen=True)
class TokenisedTask:
    """All three splits of a task as tokens, and what is needed to batch them."""

    name: str
    kind: Kind
    classes: tuple[str, ...]
    splits: dict[str, TokenSplit]
    pad_id: int


def tokenise(source: Source, tokenizer: Any, max_length: int, padding: int | None = None) -> TokenisedTask:
    """The tokens of ``source`` for a Hugging Face ``tokenizer``, from the cache when they are there and
    whole.

    ``padding`` is the id that pads, where the model has a say in it; else it is that of :func:`pad_id`.
    """
    key = _key(source, tokenizer, max_length)
    place = build_once(
        cache_dir() / "tokens" / f"{source.name}-{key[:16]}", lambda folder: _write(folder, source, tokenizer, max_length), _valid
    )
    meta = json.loads((place / "meta.json").read_text())
    arrays = load_arrays((place / "tokens.safetensors").read_bytes())
    splits = {
        split: TokenSplit(arrays[f"{split}.tokens"], arrays[f"{split}.offsets"], arrays[f"{split}.labels"], meta["ids"][split])
        for split in SPLITS
    }
    padding = pad_id(tokenizer) if padding is None else padding
    return TokenisedTask(source.name, source.kind, tuple(meta["classes"]), splits, padding)


def pad_id(tokenizer: Any, vocabulary: int | None = None) -> int:
    """The id that fills up short sequences: the tokenizer's padding token, else its end of sequence, else its
    unknown token, else 0; the first that is below ``vocabulary``, the number of ids that the model knows.

    It is masked everywhere, so any id serves. But it must be one the model can look up, and a tokenizer may
    have had a token added that its model never got a row for.
    """
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id):
        if candidate is not None and (vocabulary is None or candidate < vocabulary):
            return int(candidate)
    return 0


def _key(source: Source, tokenizer: Any, max_length: int) -> str:
    """Hash of all that the tokens depend on."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    for passing in ("truncation", "padding"):
        state.pop(passing, None)  # left behind by the last call, no part of the vocabulary
    vocabulary = json.dumps(state, sort_keys=True)
    text = "\0".join((source.name, source.kind, source.fingerprint(), vocabulary, str(max_length), VERSION))
    return hashlib.sha256(text.encode()).hexdigest()


def _write(folder: Path, source: Source, tokenizer: Any, max_length: int) -> None:
    texts = source.load()
    arrays: dict[str, np.ndarray] = {}
    ids: dict[str, list[str]] = {}
    for split in SPLITS:
        packed = _tokenise_split(texts.splits[split], tokenizer, max_length, source.kind)
        if not len(packed):
            raise DataError(f"{source.name}: no text left for {split}; the task needs more or longer texts")
        arrays |= {f"{split}.tokens": packed.tokens, f"{split}.offsets": packed.offsets, f"{split}.labels": packed.labels_N}
        ids[split] = packed.ids
    blob = save_arrays(arrays)
    (folder / "tokens.safetensors").write_bytes(blob)
    meta = {"sha256": hashlib.sha256(blob).hexdigest(), "classes": texts.classes, "ids": ids}
    (folder / "meta.json").write_text(json.dumps(meta))


def _valid(place: Path) -> bool:
    """Whether the cached tokens are whole: the file's hash is the one written beside it."""
    try:
        meta = json.loads((place / "meta.json").read_text())
        return bool(meta["sha256"] == hashlib.sha256((place / "tokens.safetensors").read_bytes()).hexdigest())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _tokenise_split(examples: list[Example], tokenizer: Any, max_length: int, kind: Kind) -> TokenSplit:
    sequences: list[np.ndarray] = []
    ids: list[str] = []
    labels: list[int] = []
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        for example, tokens in zip(batch, _encode(batch, tokenizer, max_length, kind), strict=True):
            for piece in _pieces(tokens, max_length, kind):
                sequences.append(piece)
                ids.append(example.id)
                labels += [example.label] if example.label is not None else []
    return _pack(sequences, np.asarray(labels, dtype=np.int64), ids)


def _encode(batch: list[Example], tokenizer: Any, max_length: int, kind: Kind) -> list[list[int]]:
    texts = [example.text for example in batch]
    if kind == "classification":
        return list(tokenizer(texts, truncation=True, max_length=max_length)["input_ids"])
    # Longer than the model's window on purpose: the windows are cut below, so no warning is due.
    return list(tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])


def _pieces(tokens: list[int], max_length: int, kind: Kind) -> list[np.ndarray]:
    array = np.asarray(tokens, dtype=np.int32)
    if kind == "classification":
        return [array] if len(array) else []
    windows = [array[start : start + max_length] for start in range(0, len(array), max_length)]
    return [window for window in windows if len(window) > 1]  # one token alone predicts nothing


def _pack(sequences: list[np.ndarray], labels_N: np.ndarray, ids: list[str]) -> TokenSplit:
    tokens = np.concatenate(sequences) if sequences else np.zeros(0, dtype=np.int32)
    offsets = np.cumsum([0, *(len(sequence) for sequence in sequences)], dtype=np.int64)
    return TokenSplit(tokens, offsets, labels_N, ids)
