"""Generation stops at the token with which a chat template closes an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from bitrank.models.load import load_tokenizer
from bitrank.models.locate import locate
from bitrank.run.end_markers import end_marker
from bitrank.run.generations import generate, scored_texts
from bitrank.spec.task_kinds import Generation
from bitrank_data import TokenSplit
from bitrank_data.conversations import dialogue
from bitrank_data.dialogues import encode_dialogues
from bitrank_data.sequences import Cutting, pack
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

MARKER = "<end_of_turn>"
GEMMA = (
    "{% for m in messages %}{{ 'is ' + m.content + '<end_of_turn> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'is ' }}{% endif %}"
)


class Script(nn.Module):
    """An output head that predicts given tokens, one per step, whatever it reads."""

    def __init__(self, tokens: Sequence[int], vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.vocabulary, self.step = tokens, vocabulary, 0

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        logits_BTV = torch.zeros(*hidden_BTD.shape[:2], self.vocabulary)
        logits_BTV[..., self.tokens[self.step]] = 1.0
        self.step += 1
        return logits_BTV


def chat_tokenizer(special: bool = True) -> Any:
    """A tokenizer whose end of a text, ``[SEP]``, is not the end of a turn."""
    tokenizer = load_tokenizer("tiny-llama")
    tokenizer.add_tokens([MARKER], special_tokens=special)
    tokenizer.chat_template = GEMMA
    return tokenizer


def split_of(tokenizer: Any, answers: Sequence[str], max_length: int = 64) -> TokenSplit:
    """One dialogue per answer, with prompts of different lengths."""
    examples = []
    for number, answer in enumerate(answers):
        question = " ".join(["the film", *["good"] * number])
        turns = [("user", question), ("assistant", answer)]
        examples.append(dialogue(f"e{number}", None, turns, "chat"))
    pieces = [
        piece
        for several in encode_dialogues(examples, tokenizer, Cutting(max_length))[0]
        for piece in several
    ]
    return pack(pieces, np.zeros(0), [example.id for example in examples])


def scripted(tokenizer: Any, text: str) -> Any:
    """A model that continues any prompt by ``text``."""
    model = AutoModelForCausalLM.from_pretrained(locate("tiny-llama")).eval()
    model.resize_token_embeddings(len(tokenizer))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    model.set_output_embeddings(Script(ids, len(tokenizer)))
    return model


@pytest.mark.parametrize("special", [True, False])
def test_a_text_ends_before_the_marker_of_the_chat_template(special: bool) -> None:
    tokenizer = chat_tokenizer(special)
    split = split_of(tokenizer, ["bad", "bad", "bad and dull good film film"])
    model = scripted(tokenizer, f"bad {MARKER} good film good film film film")
    samples = scored_texts(model, tokenizer, split, "cpu", Generation(("answers",)))
    assert samples.columns["prediction_text"] == ["bad"] * 3
    assert samples.columns["reference_text"] == ["bad", "bad", "bad and dull good film film"]
    assert samples.columns["exact_match"] == [1.0, 1.0, 0.0]


def test_counted_tokens_end_with_the_marker_or_the_end_of_a_text() -> None:
    tokenizer = chat_tokenizer()
    split = split_of(tokenizer, ["bad", "bad", "bad and dull good film film"])
    for text, count in ((f"bad {MARKER} good film", 2), ("bad good [SEP] film", 3)):
        model = scripted(tokenizer, text)
        assert generate(model, tokenizer, split, "cpu", longest=4).tokens == 3 * count


def test_the_marker_is_the_last_token_that_all_completions_share() -> None:
    tokenizer = chat_tokenizer()
    marker = tokenizer.convert_tokens_to_ids(MARKER)
    assert end_marker(split_of(tokenizer, ["bad", "good film", "dull"]), tokenizer) == marker
    tokenizer.chat_template = GEMMA.replace(MARKER, "[SEP]")
    assert end_marker(split_of(tokenizer, ["bad", "good film", "dull"]), tokenizer) == tokenizer.eos_token_id


def test_cut_completions_have_no_say_in_the_marker() -> None:
    tokenizer = chat_tokenizer()
    split = split_of(tokenizer, ["bad", "good film", "dull " * 20], max_length=16)
    assert int(split.lengths_N.max()) == 16 and split.tokens[-1] != tokenizer.convert_tokens_to_ids(MARKER)
    assert end_marker(split, tokenizer) == tokenizer.convert_tokens_to_ids(MARKER)


def test_a_word_that_ends_all_answers_is_no_marker() -> None:
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = GEMMA.replace(MARKER, "")
    assert end_marker(split_of(tokenizer, ["bad film", "good film", "dull film"]), tokenizer) is None
    unknown = split_of(tokenizer, ["bad xyzzy", "good xyzzy", "dull xyzzy"])
    assert int(unknown.tokens[-1]) == tokenizer.unk_token_id
    assert end_marker(unknown, tokenizer) is None


def test_an_added_token_that_is_no_special_one_must_not_occur_inside_an_answer() -> None:
    answers = [f"bad {MARKER} film", "good film", "dull"]
    for special in (True, False):
        tokenizer = chat_tokenizer(special)
        marker = tokenizer.convert_tokens_to_ids(MARKER)
        assert end_marker(split_of(tokenizer, answers), tokenizer) == (marker if special else None)
