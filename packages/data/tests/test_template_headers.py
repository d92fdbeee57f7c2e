"""Chat templates that ignore ``add_generation_prompt``: the header of an answer belongs to its context."""

from __future__ import annotations

import pytest
from bitrank_data.conversations import dialogue
from bitrank_data.templates import Text, texts_of
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

HEADED = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def parts(template: str, *contents: str) -> list[tuple[str, bool]]:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")),
        bos_token="<s>",
        eos_token="</s>",
    )
    tokenizer.chat_template = template
    pairs = [(("user", "assistant")[n % 2], text) for n, text in enumerate(contents)]
    text: Text
    (text,) = texts_of(dialogue("0", None, pairs, "chat"), tokenizer)
    return [(part.text, part.is_answer) for part in text]


@pytest.mark.parametrize("answer", ["a good film", "<", "<|", "assistant", "a", "|>", "ask"])
def test_the_header_of_an_answer_is_context_in_every_turn(answer: str) -> None:
    assert parts(HEADED, "ask", answer, "more", answer) == [
        ("<|user|>\nask</s>\n<|assistant|>\n", False),
        (f"{answer}</s>", True),
        ("\n<|user|>\nmore</s>\n<|assistant|>\n", False),
        (f"{answer}</s>", True),
    ]


def test_a_space_before_an_answer_is_no_header() -> None:
    assert parts(LLAMA_2, "ask", "one", "more", "two") == [
        ("<s>[INST] ask [/INST]", False),
        (" one </s>", True),
        ("<s>[INST] more [/INST]", False),
        (" two </s>", True),
    ]
