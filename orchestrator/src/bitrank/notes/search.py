"""Search notes by meaning (MiniLM) and by words (BM25); both rankings count equally.

The rankings are combined by reciprocal rank fusion (Cormack, Clarke & Büttcher 2009): a passage scores the
sum of 1 / (60 + its place) over both. Vectors of passages are cached by the hash of their text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from bitrank_data import cache_dir

from bitrank.notes.embed import MODEL, Embedder, read_vectors, write_vectors
from bitrank.notes.note import Note

_CONSTANT = 60  # k of reciprocal rank fusion, the value of Cormack et al.
_MAX_CACHED = 50_000


class Embeds(Protocol):
    """Maps texts to unit vectors, (N, D)."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of ``texts``."""


@dataclass(frozen=True)
class Passage:
    """A paragraph of the note at ``path``; ``score`` is comparable within one search only."""

    path: Path
    note: Note
    text: str
    score: float


def search(
    notes: Mapping[Path, Note], question: str, count: int = 5, embedder: Embeds | None = None
) -> list[Passage]:
    """The ``count`` passages of ``notes`` that answer ``question`` best, the best first."""
    pairs = [(path, text) for path, note in notes.items() for text in note.paragraphs]
    if not pairs:
        return []
    texts = [f"{notes[path].title}. {text}" for path, text in pairs]
    scores_N = _reciprocal(_similarities(texts, question, embedder or Embedder()))
    scores_N = scores_N + _reciprocal(_word_scores(texts, question))
    best = np.argsort(-scores_N, kind="stable")[:count]
    return [
        Passage(pairs[index][0], notes[pairs[index][0]], pairs[index][1], float(scores_N[index]))
        for index in best.tolist()
    ]


def _similarities(texts: Sequence[str], question: str, embedder: Embeds) -> np.ndarray:
    """Cosine of each text with ``question``, (N,)."""
    path = cache_dir() / "notes" / f"{MODEL}.npz"
    keys = [hashlib.sha256(text.encode()).hexdigest()[:32] for text in texts]
    known = read_vectors(path)
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    if missing:
        vectors = embedder.embed(list(missing.values()))
        known |= dict(zip(missing, vectors, strict=True))
        write_vectors(path, dict(list(known.items())[-_MAX_CACHED:]))
    found_ND = np.stack([known[key] for key in keys])
    similarities_N: np.ndarray = found_ND @ embedder.embed([question])[0]
    return similarities_N


def _word_scores(texts: Sequence[str], question: str) -> np.ndarray:
    """BM25 of each text for ``question``, (N,); 0 where no word is shared."""
    import bm25s

    options = {"stopwords": "en", "show_progress": False}
    corpus, words = bm25s.tokenize(list(texts), **options), bm25s.tokenize(question, **options)
    if not corpus.vocab or not words.vocab:  # bm25s cannot index texts without words
        return np.zeros(len(texts))
    index = bm25s.BM25()
    index.index(corpus, show_progress=False)
    shared = [word for word in words.vocab if word in corpus.vocab]
    if not shared:
        return np.zeros(len(texts))
    scores_N: np.ndarray = index.get_scores(shared)
    return scores_N


def _reciprocal(scores_N: np.ndarray) -> np.ndarray:
    """1 / (60 + place) of each score, places from 1; equal scores share the first of their places."""
    ascending = np.sort(-scores_N)
    places_N = 1 + np.searchsorted(ascending, -scores_N)
    reciprocal_N: np.ndarray = 1 / (_CONSTANT + places_N)
    return reciprocal_N
