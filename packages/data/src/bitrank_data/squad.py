"""Exact match and token F1 of an answer text, with the normalization of SQuAD's official evaluation script.

Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", 2016, and for questions
without an answer "Know What You Don't Know", 2018. Normalized text is lower case, without punctuation and
English articles, with single spaces.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalized(answer: str) -> str:
    """``answer`` in lower case, without punctuation and articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golds: Sequence[str]) -> int:
    """1 if the normalized ``answer`` equals one of the normalized ``golds``, else 0.

    The empty answer is right if no gold answer has a word left.
    """
    return int(normalized(answer) in [normalized(gold) for gold in _with_words(golds)])


def token_f1(answer: str, golds: Sequence[str]) -> float:
    """Largest F1 over ``golds`` of the words that ``answer`` shares with one, in [0, 1]."""
    return max(_f1(normalized(answer).split(), normalized(gold).split()) for gold in _with_words(golds))


def _with_words(golds: Sequence[str]) -> list[str]:
    return [gold for gold in golds if normalized(gold)] or [""]


def _f1(answer: list[str], gold: list[str]) -> float:
    if not answer or not gold:
        return float(answer == gold)
    shared = sum((Counter(answer) & Counter(gold)).values())
    return 2 * shared / (len(answer) + len(gold))
