"""Embedded tasks from pinned packages, and six toy tasks for smoke tests.

``movie_sentences``: review sentences with the mean of 20 human ratings in −4…4; |rating| ≥ 0.5, positive or
negative. ``wiki_articles``: full Wikipedia articles, split by article, so that no article is in two splits.
``toy_sentences``, ``toy_articles``, ``toy_instructions``, ``toy_questions``, ``toy_facts``,
``toy_summaries``: generated from a few templates, for tests only. The tasks of :mod:`bitrank_data.corpora`
are registered here as well.
"""

from __future__ import annotations

import bz2
import random
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from bitrank_data.assets import ASSETS, asset_dir
from bitrank_data.conversations import dialogue
from bitrank_data.corpora.sources import CORPORA
from bitrank_data.examples import ASSISTANT, USER, Example, Source, TargetExample, Texts, split_off
from bitrank_data.kinds import (
    CLASSIFICATION,
    INSTRUCTION,
    LANGUAGE_MODELLING,
    PROBING,
    QUESTION_ANSWERING,
    SEQUENCE_TO_SEQUENCE,
)
from bitrank_data.probing import read_fact
from bitrank_data.question_answering import read_question

_NEUTRAL = 0.5
_TEST_ARTICLES, _VALIDATION_ARTICLES = 30, 12
_SHORTEST_ARTICLE = 400  # characters; shorter stubs give too little text to evaluate


def movie_sentences() -> Texts:
    """10,070 sentences, of which 1,000 each for validation and test; classes negative and positive."""
    rows = (asset_dir("movie-reviews") / "movie_reviews.tsv").read_text(encoding="utf-8").splitlines()
    examples: dict[str, Example] = {}
    for row in rows:
        number, rating, text = row.split("\t", 2)
        if abs(float(rating)) >= _NEUTRAL:
            # A repeated sentence must not be in two splits: the first one is kept.
            examples.setdefault(text, Example(f"movie-{number}", text, int(float(rating) > 0)))
    return Texts(
        CLASSIFICATION,
        split_off(list(examples.values()), test=1000, validation=1000),
        ("negative", "positive"),
    )


def wiki_articles() -> Texts:
    """Full articles as plain text: 30 for test, 12 for validation, the rest for training.

    Ids are Wikipedia's page ids.
    """
    path = asset_dir("wikipedia") / "articles.xml.bz2"
    articles = [article for article in _articles(path) if len(article.text) >= _SHORTEST_ARTICLE]
    return Texts(
        LANGUAGE_MODELLING, split_off(articles, test=_TEST_ARTICLES, validation=_VALIDATION_ARTICLES)
    )


def _articles(path: Path) -> Iterator[Example]:
    import mwparserfromhell

    with bz2.open(path) as stream:
        for _, element in ElementTree.iterparse(stream):
            if not element.tag.endswith("}page"):
                continue
            space = element.tag[: -len("page")]
            if element.findtext(f"{space}ns") == "0" and element.find(f"{space}redirect") is None:
                text = element.findtext(f"{space}revision/{space}text") or ""
                plain = mwparserfromhell.parse(text).strip_code(normalize=True, collapse=True).strip()
                yield Example(f"wiki-{element.findtext(f'{space}id')}", plain)
            element.clear()


_GOOD = ("good", "lovely", "bright", "fine", "superb")
_BAD = ("bad", "dull", "poor", "weak", "awful")
_NOUNS = ("film", "story", "cast", "score", "plot", "ending", "scene", "script")


def toy_sentences() -> Texts:
    """160 template sentences whose adjective determines the label."""
    random_ = random.Random(0)
    examples = []
    for number in range(160):
        label = number % 2
        choices = random_.choice(_GOOD if label else _BAD)
        nouns = " and the ".join(random_.sample(_NOUNS, random_.randint(1, 4)))
        examples.append(Example(f"toy-{number}", f"the {nouns} is {choices}", label))
    return Texts(CLASSIFICATION, split_off(examples, test=32, validation=32), ("negative", "positive"))


def toy_articles() -> Texts:
    """24 documents of template sentences."""
    random_ = random.Random(1)
    documents = []
    for number in range(24):
        sentences = [f"the {random_.choice(_NOUNS)} is {random_.choice(_GOOD + _BAD)}" for _ in range(40)]
        documents.append(Example(f"toy-{number}", " . ".join(sentences)))
    return Texts(LANGUAGE_MODELLING, split_off(documents, test=6, validation=4))


def toy_summaries() -> Texts:
    """160 texts of two or three template sentences; the summary is the first one without its small words."""
    random_ = random.Random(2)
    examples: dict[str, Example] = {}
    while len(examples) < 160:
        nouns = random_.sample(_NOUNS, random_.randint(2, 3))
        words = [(noun, random_.choice(_GOOD + _BAD)) for noun in nouns]
        text = " and ".join(f"the {noun} is {word}" for noun, word in words)
        noun, word = words[0]
        examples.setdefault(text, TargetExample(f"toy-{len(examples)}", text, target=f"{word} {noun}"))
    return Texts(SEQUENCE_TO_SEQUENCE, split_off(list(examples.values()), test=32, validation=32))


def toy_instructions() -> Texts:
    """120 prompts about a noun and an adjective, whose completion repeats both; all prompts differ."""
    choices = [(noun, other, word) for noun in _NOUNS for other in _NOUNS for word in _GOOD if noun != other]
    examples = []
    for number, (noun, other, word) in enumerate(random.Random(2).sample(choices, 120)):
        turns = ((USER, f"the {noun} is {word} and the {other} is"), (ASSISTANT, f" {word} and the {noun} ."))
        examples.append(dialogue(f"toy-{number}", None, turns, "completion"))
    return Texts(INSTRUCTION, split_off(examples, test=24, validation=16))


def toy_questions() -> Texts:
    """160 questions about lists of nouns; the answer is the only adjective of the context.

    Contexts of up to 48 words make several windows of 32 tokens.
    """
    random_ = random.Random(2)
    examples: dict[str, Example] = {}
    while len(examples) < 160:
        answer = random_.choice(_GOOD + _BAD)
        nouns = random_.choices(_NOUNS, k=random_.choice((2, 3, 4, 5, 15)))
        parts = [f"the {noun}" for noun in nouns]
        parts.insert(random_.randint(0, len(parts)), answer)
        fields = {"question": f"the {random_.choice(_NOUNS)} is", "context": " and ".join(parts)}
        example = read_question(f"toy-{len(examples)}", {**fields, "answers": [answer]})
        examples.setdefault(example.text, example)
    return Texts(QUESTION_ANSWERING, split_off(list(examples.values()), test=32, validation=32))


def toy_facts() -> Texts:
    """160 prompts that end in a noun; each noun has one adjective."""
    random_ = random.Random(3)
    adjectives = dict(zip(_NOUNS, (*_GOOD[:4], *_BAD[:4]), strict=True))
    prompts: dict[str, str] = {}
    while len(prompts) < 160:
        nouns = random_.sample(_NOUNS, random_.randint(2, 4))
        prompts[" and ".join(f"the {noun}" for noun in nouns)] = nouns[-1]
    examples = [
        read_fact(f"toy-{number}", {"prompt": prompt, "object": adjectives[noun]})
        for number, (prompt, noun) in enumerate(prompts.items())
    ]
    return Texts(PROBING, split_off(examples, test=32, validation=32))


def _pinned(asset: str) -> str:
    return ASSETS[asset].sha256


EMBEDDED: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "movie_sentences",
            CLASSIFICATION,
            lambda: _pinned("movie-reviews"),
            movie_sentences,
            "movie-review sentences, two classes",
        ),
        Source(
            "wiki_articles",
            LANGUAGE_MODELLING,
            lambda: _pinned("wikipedia"),
            wiki_articles,
            "106 Wikipedia articles",
        ),
        Source("toy_sentences", CLASSIFICATION, lambda: "toy", toy_sentences, "made sentences, for tests"),
        Source("toy_articles", LANGUAGE_MODELLING, lambda: "toy", toy_articles, "made articles, for tests"),
        Source(
            "toy_summaries", SEQUENCE_TO_SEQUENCE, lambda: "toy", toy_summaries, "made summaries, for tests"
        ),
        Source("toy_instructions", INSTRUCTION, lambda: "toy", toy_instructions, "made prompts, for tests"),
        Source(
            "toy_questions", QUESTION_ANSWERING, lambda: "toy", toy_questions, "made questions, for tests"
        ),
        Source("toy_facts", PROBING, lambda: "toy", toy_facts, "made facts, for tests"),
        *CORPORA,
    )
}
