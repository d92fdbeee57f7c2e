"""Texts for language modelling: the Brown corpus, and conversations as plain text."""

from __future__ import annotations

from bitrank_data.assets import asset_dir
from bitrank_data.examples import Example, Texts, split_off
from bitrank_data.kinds import LANGUAGE_MODELLING
from bitrank_data.tables import Row, read_table

_TURNS = 4  # a conversation with fewer was abandoned


def brown() -> Texts:
    """500 texts of about 2,000 words: 150 for test, 50 for validation, 300 for training."""
    rows = read_table(asset_dir("brown") / "brown.parquet")
    texts = [Example(f"brown-{row['name']}", row["text"]) for row in rows]
    return Texts(LANGUAGE_MODELLING, split_off(texts, test=150, validation=50))


def chitchat() -> Texts:
    """Conversations of four turns or more, a turn on each line: 1,000 for test, 200 for validation."""
    rows = read_table(asset_dir("chitchat") / "chitchat.parquet")
    texts = [
        Example(f"chitchat-{row['name']}", dialogue_text(row)) for row in rows if len(row["turns"]) >= _TURNS
    ]
    return Texts(LANGUAGE_MODELLING, split_off(texts, test=1000, validation=200))


def dialogue_text(row: Row) -> str:
    """The turns of a conversation, each with its speaker: ``1: hello``."""
    pairs = zip(row["speakers"], row["turns"], strict=True)
    return "\n".join(f"{speaker}: {turn}" for speaker, turn in pairs)
