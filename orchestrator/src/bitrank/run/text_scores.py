"""Scores of generated texts against references: one entry per score, by a well-kept library where one exists.

A score gives numbers per example, which are columns of ``predictions.parquet`` and the input of paired tests,
and the figures of the whole test set. The libraries are the extra ``text``: they are imported when a score is
computed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from bitrank_data import exact_match, token_f1

from bitrank.errors import UserError, unknown

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Scored:
    """Values by column, in the order of the texts, and ``figures`` over all texts by name."""

    columns: Columns
    figures: dict[str, float]


@dataclass(frozen=True)
class TextScore:
    """``score`` compares texts with their references; ``library`` is the module it needs, "" for none."""

    about: str
    score: Callable[[Sequence[str], Sequence[str]], Scored]
    library: str = ""


def score_texts(names: Sequence[str], texts: Sequence[str], references: Sequence[str]) -> Scored:
    """All columns and figures of the entries ``names`` of :data:`TEXT_SCORES`.

    Raises :class:`UserError` as :func:`check_scores` does.
    """
    check_scores(names)
    columns: Columns = {}
    figures: dict[str, float] = {}
    for name in names:
        found = TEXT_SCORES[name].score(texts, references)
        columns |= found.columns
        figures |= found.figures
    return Scored(columns, figures)


def check_scores(names: Sequence[str]) -> None:
    """Raise :class:`UserError` for an unknown score, or one whose library is not installed."""
    for name in names:
        if name not in TEXT_SCORES:
            raise unknown("score of texts", name, TEXT_SCORES)
        library = TEXT_SCORES[name].library
        if library and find_spec(library) is None:
            raise UserError(
                f"the score {name} of generated texts needs {library}, which is not installed: "
                f"{sys.executable} -m pip install 'bitrank[text]'"
            )


def _answers(texts: Sequence[str], references: Sequence[str]) -> Scored:
    pairs = list(zip(texts, references, strict=True))
    columns = {
        "exact_match": [float(exact_match(text, [reference])) for text, reference in pairs],
        "token_f1": [token_f1(text, [reference]) for text, reference in pairs],
    }
    return _means(columns)


def _rouge(texts: Sequence[str], references: Sequence[str]) -> Scored:
    """F-measures of common words (ROUGE-1), word pairs (ROUGE-2) and the longest common subsequence."""
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names, use_stemmer=True)
    found = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    columns: Columns = {}
    for name in names:
        columns[name] = [float(scores[name].fmeasure) for scores in found]
    return _means(columns)


def _means(columns: Columns) -> Scored:
    return Scored(columns, {name: sum(values) / len(values) for name, values in columns.items()})


def _corpus(name: str, texts: Sequence[str], references: Sequence[str]) -> Scored:
    """A corpus metric of sacrebleu: the counts of each text, from which any sample's score follows."""
    import sacrebleu

    metric = {"bleu": sacrebleu.BLEU, "chrf": sacrebleu.CHRF}[name]()
    score = metric.corpus_score(list(texts), [list(references)]).score
    # The counts that sacrebleu itself resamples in its paired bootstrap.
    counts = metric._extract_corpus_statistics(list(texts), [list(references)])
    return Scored({f"{name}_counts": [list(map(int, row)) for row in counts]}, {name: float(score)})


TEXT_SCORES: dict[str, TextScore] = {
    "rouge": TextScore("ROUGE-1, ROUGE-2 and ROUGE-L, F-measures with stemming", _rouge, "rouge_score"),
    "bleu": TextScore("BLEU of the test set, 0 to 100", partial(_corpus, "bleu"), "sacrebleu"),
    "chrf": TextScore("chrF of the test set, 0 to 100", partial(_corpus, "chrf"), "sacrebleu"),
    "answers": TextScore("exact match and F1 of words, normalized as SQuAD's", _answers),
}
