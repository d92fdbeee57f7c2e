"""Embedded tasks of :mod:`bitrank_data.corpora`, by asset."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bitrank_data.assets import ASSETS
from bitrank_data.corpora import classes, examples_of, language
from bitrank_data.examples import Source, Texts
from bitrank_data.kinds import (
    CLASSIFICATION,
    INSTRUCTION,
    LANGUAGE_MODELLING,
    PROBING,
    QUESTION_ANSWERING,
    SEQUENCE_TO_SEQUENCE,
)


def _source(name: str, kind: str, asset: str, load: Callable[[], Texts], about: str) -> Source:
    return Source(name, kind, lambda: ASSETS[asset].sha256, load, about)


CORPORA: tuple[Source, ...] = (
    _source(
        "multiemo", CLASSIFICATION, "bigbench", classes.multiemo, "consumer-review sentences, four classes"
    ),
    _source("vitaminc", CLASSIFICATION, "bigbench", classes.vitaminc, "claims about passages, three classes"),
    _source(
        "amazon_snippets",
        CLASSIFICATION,
        "rated-snippets",
        partial(classes.rated_snippets, "amazon", 600, 300),
        "product-review sentences, two classes",
    ),
    _source(
        "newspaper_snippets",
        CLASSIFICATION,
        "rated-snippets",
        partial(classes.rated_snippets, "newspaper", 800, 400),
        "sentences of newspaper editorials, two classes",
    ),
    _source(
        "tweets",
        CLASSIFICATION,
        "rated-snippets",
        partial(classes.rated_snippets, "tweets", 1000, 400),
        "tweets, two classes",
    ),
    _source("brown", LANGUAGE_MODELLING, "brown", language.brown, "500 texts of the Brown corpus"),
    _source("chitchat", LANGUAGE_MODELLING, "chitchat", language.chitchat, "conversations of two strangers"),
    _source(
        "natural_instructions",
        INSTRUCTION,
        "bigbench",
        examples_of.natural_instructions,
        "61 instructions with inputs and outputs",
    ),
    _source("topical_chat", INSTRUCTION, "bigbench", examples_of.topical_chat, "conversations on topics"),
    _source(
        "chitchat_dialogues",
        INSTRUCTION,
        "chitchat",
        examples_of.chitchat_dialogues,
        "conversations of two strangers, answers of the second",
    ),
    _source(
        "disfl_qa",
        QUESTION_ANSWERING,
        "bigbench",
        examples_of.disfl_qa,
        "disfluent questions about Wikipedia passages",
    ),
    _source("xsum", SEQUENCE_TO_SEQUENCE, "bigbench", examples_of.xsum, "summaries of news articles"),
    _source(
        "wikilingua", SEQUENCE_TO_SEQUENCE, "bigbench", examples_of.wikilingua, "summaries of how-to texts"
    ),
    _source("qa_wikidata", PROBING, "bigbench", examples_of.qa_wikidata, "facts of Wikidata"),
)
