"""How texts of a run begin and end, for the programs that generate with an exported model.

A program needs the chat template of training, the tokens that end an answer, and the sampling settings of the
base: its ``generation_config.json``, which a configuration does not contain.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitrank_data import INSTRUCTION, Dialogue

from bitrank.errors import UserError
from bitrank.export.default_templates import chat_template
from bitrank.export.rebuild import Rebuilt
from bitrank.models.locate import folder_of
from bitrank.run.end_markers import end_marker
from bitrank.spec.inputs import source_of

GENERATION = "generation_config.json"


@dataclass(frozen=True)
class RunTexts:
    """Properties of the texts of a run.

    ``is_dialogue``: it was trained on the answers of dialogues, which ``marker`` ends; None: no token ends
    them all. ``begins_with_bos``: every sequence begins with the tokenizer's token for it. ``template`` is
    the wording of dialogues where the tokenizer has no chat template. ``generation`` is the content of
    ``generation_config.json``; None for a model that does not generate.
    """

    is_dialogue: bool
    begins_with_bos: bool
    marker: int | None
    template: str | None
    generation: dict[str, Any] | None

    @property
    def notes(self) -> list[str]:
        """The sentence on a template that the export adds."""
        if self.template is None:
            return []
        return [
            "the tokenizer has no chat template: the export has one with the wording of the run's texts; an "
            "input of an instruction is written below it, after '### Input:'"
        ]

    def write(self, tokenizer: Any, folder: Path) -> None:
        """Write the files of ``tokenizer``, and ``generation_config.json``."""
        if self.template is not None:
            tokenizer.chat_template = self.template
        tokenizer.save_pretrained(folder)
        if self.generation is not None:
            text = json.dumps(self.generation, indent=2)
            (folder / GENERATION).write_text(f"{text}\n", encoding="utf-8")


def run_texts(rebuilt: Rebuilt) -> RunTexts:
    """The properties of the texts of ``rebuilt``, read from its data and its base."""
    tokenizer, config = rebuilt.tokenizer, rebuilt.inner.config
    is_dialogue = rebuilt.spec.kind == INSTRUCTION and not config.is_encoder_decoder
    begins = set(_first_tokens(rebuilt)) == {tokenizer.bos_token_id}
    marker = end_marker(rebuilt.data.validation, tokenizer) if is_dialogue else None
    template = None
    if is_dialogue and not tokenizer.chat_template:
        template = chat_template(_style(rebuilt), begins, tokenizer.eos_token is not None)
    return RunTexts(is_dialogue, begins, marker, template, _generation(rebuilt, marker))


def _first_tokens(rebuilt: Rebuilt) -> Iterator[int]:
    for split in rebuilt.data.task.splits.values():
        yield from split.tokens[split.offsets[:-1]].tolist()


def _style(rebuilt: Rebuilt) -> str:
    """The style of the dialogues of the run, which is that of the columns of their file."""
    example = source_of(rebuilt.spec).load().splits["train"][0]
    assert isinstance(example, Dialogue)
    return example.style


def _generation(rebuilt: Rebuilt, marker: int | None) -> dict[str, Any] | None:
    """The generation settings of the base, or those of its configuration, with ``marker`` as an end."""
    own = getattr(rebuilt.inner, "generation_config", None)
    if own is None:
        return None
    data = _stored(folder_of(rebuilt.spec.model_source) / GENERATION)
    if data is None:
        data = own.to_diff_dict()
    data.pop("_from_model_config", None)  # the ends may be others
    if own.pad_token_id is not None:  # that of the exported configuration
        data["pad_token_id"] = own.pad_token_id
    given = data.get("eos_token_id", own.eos_token_id)
    ends = given if isinstance(given, list) else [] if given is None else [given]
    if marker is not None and marker not in ends:
        data["eos_token_id"] = [*ends, marker]
    return data


def _stored(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is no JSON ({error}); correct or remove it") from error
    if not isinstance(data, dict):
        raise UserError(f"{file} is no JSON object; correct or remove it")
    return data
