"""Chat templates of released models: only the assistant's tokens are targets, in every turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bitrank_data import IGNORED, DataError, open_task, tokenise
from bitrank_data.conversations import dialogue
from bitrank_data.templates import texts_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

_ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles "
    "must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
# Shortened to the parts for text: tools, dates and images are left out.
LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN_2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN_3 = (
    "{%- set ns = namespace(last_query_index=messages|length - 1) %}"
    "{%- for message in messages %}{%- if message.role == 'user' %}"
    "{%- set ns.last_query_index = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for message in messages %}{%- set content = message.content.split('</think>')[-1].lstrip('\n') %}"
    "{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' and loop.index0 > ns.last_query_index %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{{- content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
QWEN_3_THOUGHTS = (  # as QWEN_3, with the part that rewrites the thought of an answer
    "{%- set ns = namespace(last_query_index=messages|length - 1) %}"
    "{%- for message in messages %}{%- if message.role == 'user' %}"
    "{%- set ns.last_query_index = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for message in messages %}{%- set content = message.content %}{%- set thought = '' %}"
    "{%- if message.role == 'assistant' and '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' and loop.index0 > ns.last_query_index %}"
    "{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{%- endif %}{{- content + '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    + _ALTERNATE
    + "{% if message['role'] == 'assistant' %}"
    "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}" + _ALTERNATE + "{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
PHI_3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<|system|>\n' + message['content'] + '<|end|>\n' }}{% elif message['role'] == 'user' %}"
    "{{ '<|user|>\n' + message['content'] + '<|end|>\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\n' + message['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
MARKED = (  # ChatML that marks the assistant's text, as templates for training do
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Template, and the texts that are trained on for the answers "one" and "two" of two exchanges.
TEMPLATES = {
    "llama-3": (LLAMA_3, ["one<|eot_id|>", "two<|eot_id|>"]),
    "qwen-2": (QWEN_2, ["one<|im_end|>", "two<|im_end|>"]),
    "qwen-3": (QWEN_3, [f"<think>\n\n</think>\n\n{text}<|im_end|>" for text in ("one", "two")]),
    "gemma": (GEMMA, ["one<end_of_turn>", "two<end_of_turn>"]),
    "mistral": (MISTRAL, ["one</s>", "two</s>"]),
    "phi-3": (PHI_3, [f"{text}<|end|>\n</s>" for text in ("one", "two")]),
    "zephyr": (ZEPHYR, ["one</s>", "two</s>"]),
    "chatml with generation marks": (MARKED, ["one<|im_end|>", "two<|im_end|>"]),
}
NO_SYSTEM = {"gemma": "System role not supported", "mistral": "Conversation roles must alternate"}


def tokenizer_of(template: str) -> PreTrainedTokenizerFast:
    """Tokenizer of bytes that puts ``<s>`` before a text, as those of Llama, Gemma and Mistral do."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **special)
    tokenizer.chat_template = template
    return tokenizer


def turns(*contents: str, system: str = "") -> list[dict[str, str]]:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]
    return [{"role": "system", "content": system}, *messages] if system else messages


def written(path: Path, messages: list[dict[str, str]], count: int = 12) -> str:
    rows = [json.dumps({"messages": messages}).replace("NUMBER", str(n)) for n in range(count)]
    path.write_text("\n".join(rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_the_answers_and_their_ends_are_trained_on(name: str, tmp_path: Path) -> None:
    template, expected = TEMPLATES[name]
    tokenizer = tokenizer_of(template)
    path = written(tmp_path / "x.jsonl", turns("ask NUMBER", "one", "more", "two"))
    split = tokenise(open_task(path), tokenizer, 512).splits["train"]
    sequences = [n for n, id_ in enumerate(split.ids) if id_ == split.ids[0]]
    trained: list[str] = []
    for number in sequences:
        tokens, targets = split.sequence(number), split.targets_of(number)
        is_target = targets != IGNORED
        assert (tokens[is_target] == targets[is_target]).all()
        borders = [n for n in range(1, len(tokens)) if is_target[n] and not is_target[n - 1]]
        for begin in borders:
            end = next((n for n in range(begin, len(tokens)) if not is_target[n]), len(tokens))
            trained.append(tokenizer.decode(tokens[begin:end]))
        assert tokens.tolist().count(tokenizer.bos_token_id) == template.count("bos_token")
    assert trained == expected


def test_answers_whose_thoughts_a_template_rewrites_are_trained_on_one_by_one() -> None:
    answers = ["<think>the cast</think>good 5", "<think>\n\nthe plot\n</think>bad"]
    pairs = [("user", "ask"), ("assistant", answers[0]), ("user", "the cast"), ("assistant", answers[1])]
    texts = texts_of(dialogue("0", None, pairs, "chat"), tokenizer_of(QWEN_3_THOUGHTS))
    assert [segment.text for text in texts for segment in text if segment.is_answer] == [
        "<think>\nthe cast\n</think>\n\ngood 5<|im_end|>",
        "<think>\nthe plot\n</think>\n\nbad<|im_end|>",
    ]
    assert texts[1][0].text.count("<think>") == 0 and "good 5" in texts[1][0].text


def test_a_template_that_drops_the_thought_of_the_last_answer_is_refused() -> None:
    pairs = [("user", "ask"), ("assistant", "<think>the cast</think>good 5")]
    with pytest.raises(DataError, match="leaves out the turn of the role 'assistant'"):
        texts_of(dialogue("0", None, pairs, "chat"), tokenizer_of(QWEN_3))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_before_the_last_answer_is_the_prompt_of_the_template(name: str) -> None:
    tokenizer = tokenizer_of(TEMPLATES[name][0])
    messages = turns("ask", "one", "more", "two")
    pairs = [[turn["role"], turn["content"]] for turn in messages]
    text = texts_of(dialogue("0", None, pairs, "chat"), tokenizer)[-1]
    before = "".join(segment.text for segment in text[:-1])
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
    assert before == tokenizer.apply_chat_template(messages[:-1], **options)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in NO_SYSTEM])
def test_a_system_turn_is_context(name: str, tmp_path: Path) -> None:
    template, expected = TEMPLATES[name]
    path = written(tmp_path / "x.jsonl", turns("ask NUMBER", "one", system="be brief"))
    task = tokenise(open_task(path), tokenizer_of(template), 512)
    split, tokenizer = task.splits["train"], tokenizer_of(template)
    tokens, targets = split.sequence(0), split.targets_of(0)
    assert "be brief" in tokenizer.decode(tokens)
    assert tokenizer.decode(tokens[targets != IGNORED]) == expected[0]


@pytest.mark.parametrize("name", NO_SYSTEM)
def test_a_system_turn_is_refused_with_its_row_if_the_template_has_none(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", turns("ask NUMBER", "one", system="be brief"))
    message = (
        rf"row \d+ of x.jsonl: the tokenizer's chat template rejects a conversation .*: {NO_SYSTEM[name]}"
    )
    with pytest.raises(DataError, match=message) as error:
        tokenise(open_task(path), tokenizer_of(TEMPLATES[name][0]), 512)
    assert "the roles system, user" in str(error.value) and "Change or remove these turns" in str(error.value)


def test_marks_of_generated_text_agree_with_the_targets() -> None:
    tokenizer = tokenizer_of(MARKED)
    messages = turns("ask", "one", "more", "two")
    options: dict[str, Any] = {"return_dict": True, "return_assistant_tokens_mask": True}
    marked = tokenizer.apply_chat_template(messages, **options)
    kept = [
        t for t, is_answer in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if is_answer
    ]
    pairs = [[turn["role"], turn["content"]] for turn in messages]
    (text,) = texts_of(dialogue("0", None, pairs, "chat"), tokenizer)
    answers = "".join(segment.text for segment in text if segment.is_answer)
    assert tokenizer.decode(kept) == answers == "one<|im_end|>two<|im_end|>"


def test_a_template_that_prints_the_day_prints_the_same_on_every_day(tmp_path: Path) -> None:
    dated = "{{ 'Today Date: ' + strftime_now('%d %b %Y') + '\n' }}" + QWEN_2
    tokenizer = tokenizer_of(dated)
    (text,) = texts_of(dialogue("1", None, [("user", "ask"), ("assistant", "one")], "chat"), tokenizer)
    assert text[0].text.startswith("Today Date: 26 Jul 2024\n<|im_start|>system")
