"""Texts of the token ids in the rows of an evaluation, for reading."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bitrank_trainer import Evaluation

from bitrank.spec.task_kinds import task_kind


def with_token_texts(found: Evaluation, kind: str, tokenizer: Any) -> Evaluation:
    """``found`` with the columns of texts that tasks of ``kind`` have for columns of token ids."""
    columns = task_kind(kind).token_texts
    if not columns:
        return found
    texts = {
        name: tokenizer.batch_decode([[row[ids]] for row in found.rows]) for name, ids in columns.items()
    }
    rows = [
        {**row, **{name: texts[name][number].strip() for name in columns}}
        for number, row in enumerate(found.rows)
    ]
    return replace(found, rows=rows)
