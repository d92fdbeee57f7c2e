"""The tokens of a task for a spec's model: its tokenizer, its padding id, and its longest sequence decide
them.
"""

from __future__ import annotations

from dataclasses import replace

from bitrank_data import DataReport, TokenisedTask, tokenise

from bitrank.models.config import load_config
from bitrank.models.load import load_tokenizer
from bitrank.models.padding import padding_of
from bitrank.models.positions import check_length
from bitrank.models.vocabulary import check_vocabulary
from bitrank.spec.inputs import source_of
from bitrank.spec.run_spec import RunSpec


def tokenised(spec: RunSpec) -> TokenisedTask:
    """The tokens of the task of ``spec`` for its model, with a note where sequences may be longer than the
    model was trained on.

    Raises :class:`~bitrank.errors.UserError` where the model has no positions for so many, and the data
    package's error.
    """
    too_long = check_length(spec)
    source, tokenizer = source_of(spec), load_tokenizer(spec.model_source)
    config = load_config(spec.model_source)
    padding = padding_of(tokenizer, config)
    task = tokenise(source, tokenizer, spec.max_length, spec.special_tokens, padding)
    check_vocabulary(spec.model, task, tokenizer, config)
    return replace(task, report=task.report + DataReport(notes=(too_long,))) if too_long else task
