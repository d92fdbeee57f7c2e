"""Chat templates whose prompt for generation opens a thought: the context of an answer ends before it."""

from __future__ import annotations

import pytest
from bitrank_data.conversations import dialogue
from bitrank_data.templates import Text, texts_of
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

# The form of DeepSeek-R1-Distill, which leaves the thoughts of answers out.
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + "
    "'<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
# Template, text before the first answer to "ask", end of an answer, and text between it and a second one.
TEMPLATES = {
    "deepseek": (
        DEEPSEEK,
        "<s><｜User｜>ask<｜Assistant｜>",
        "<｜end▁of▁sentence｜>",
        "<｜User｜>more<｜Assistant｜>",
    ),
    "chatml": (
        CHATML,
        "<|im_start|>user\nask<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
        "\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n",
    ),
}
PARTS_OF_MARKERS = ["of", "e", "end", "d", "m", "im", "sentence", "<", "|", "assistant", "ask"]


def rendered(template: str, *contents: str) -> Text:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")), bos_token="<s>"
    )
    tokenizer.chat_template = template
    pairs = [(("user", "assistant")[n % 2], text) for n, text in enumerate(contents)]
    (text,) = texts_of(dialogue("0", None, pairs, "chat"), tokenizer)
    return text


@pytest.mark.parametrize("answer", [*PARTS_OF_MARKERS, "a good film"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_that_occurs_in_a_marker_is_the_answer_and_not_the_marker(name: str, answer: str) -> None:
    template, before, end, between = TEMPLATES[name]
    text = rendered(template, "ask", answer, "more", answer)
    assert [(part.text, part.is_answer) for part in text] == [
        (before, False),
        (answer + end, True),
        (between, False),
        (answer + end, True),
    ]


def test_a_thought_that_a_template_keeps_is_part_of_the_answer() -> None:
    answer = "<think>so</think>\nim"
    text = rendered(CHATML, "ask", answer)
    assert [(part.text, part.is_answer) for part in text] == [
        (TEMPLATES["chatml"][1], False),
        (f"{answer}<|im_end|>", True),
    ]
