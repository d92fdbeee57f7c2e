"""The chat template of an export writes the text that a run without one was trained on."""

from __future__ import annotations

from typing import Any

import bpe_models
import pytest
from bitrank.export.default_templates import chat_template
from bitrank_data import Dialogue, Turn
from bitrank_data.templates import texts_of
from transformers import AutoTokenizer

ONE = (("user", "What flows?"), ("assistant", "A river."))
SEVERAL = (*ONE, ("user", "Where?\n\nTell me."), ("assistant", "Down "))
SYSTEM = (("system", "You are a cat."), *SEVERAL)


@pytest.fixture
def tokenizer(tmp_path: Any) -> Any:
    bpe_models.write_tokenizer(tmp_path)
    found = AutoTokenizer.from_pretrained(tmp_path)
    found.chat_template = None
    return found


def trained_text(turns: tuple[tuple[str, str], ...], style: str, tokenizer: Any, given: str = "") -> str:
    dialogue = Dialogue("1", "", None, tuple(Turn(*turn) for turn in turns), style, given)
    (segments,) = texts_of(dialogue, tokenizer)
    return "".join(segment.text for segment in segments)


def exported_text(
    turns: tuple[tuple[str, str], ...], tokenizer: Any, template: str, prompt: bool = False
) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    text: str = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=prompt
    )
    return text


@pytest.mark.parametrize("has_end", [True, False])
@pytest.mark.parametrize("turns", [ONE, SEVERAL, SYSTEM])
@pytest.mark.parametrize("style", ["chat", "instruction"])
def test_the_template_writes_the_text_of_training(
    tokenizer: Any, style: str, turns: tuple[tuple[str, str], ...], has_end: bool
) -> None:
    tokenizer.eos_token = "<|im_end|>" if has_end else None
    expected = trained_text(turns, style, tokenizer)
    template = chat_template(style, False, has_end)
    assert exported_text(turns, tokenizer, template) == expected
    prompt = exported_text(turns[:-1], tokenizer, template, prompt=True)
    assert expected == f"{prompt}{turns[-1][1]}{'<|im_end|>' if has_end else ''}"


def test_an_input_below_its_instruction_has_the_text_of_training(tokenizer: Any) -> None:
    expected = trained_text(ONE, "instruction", tokenizer, given="Rain.")
    below = (("user", "What flows?\n\n### Input:\nRain."), ONE[1])
    assert exported_text(below, tokenizer, chat_template("instruction", False, True)) == expected
    # In conversations the same words are part of a turn.
    expected = trained_text(below, "chat", tokenizer)
    assert exported_text(below, tokenizer, chat_template("chat", False, True)) == expected


def test_prompts_and_completions_are_joined_after_the_beginning_of_a_text(tokenizer: Any) -> None:
    expected = trained_text(ONE, "completion", tokenizer)
    assert exported_text(ONE, tokenizer, chat_template("completion", False, True)) == expected
    text = exported_text(ONE, tokenizer, chat_template("completion", True, True))
    assert text == f"<|endoftext|>{expected}"


def test_a_role_that_training_refuses_is_refused(tokenizer: Any) -> None:
    with pytest.raises(Exception, match="expected turns of user and assistant"):
        exported_text((("tool", "x"), *ONE), tokenizer, chat_template("chat", False, True))
