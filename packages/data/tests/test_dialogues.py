"""Instruction data: targets are the tokens of answers, and texts follow the template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitrank_data import IGNORED, DataError, TokenisedTask, evaluation_batches, open_task, tokenise
from bitrank_data.conversations import dialogue
from bitrank_data.templates import texts_of
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<end>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# leaves the first word of earlier answers out, as templates leave thoughts out
FORGETS = (
    "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}"
    "{{ '<|assistant|>\n' + m.content.split(' ')[1:] | join(' ') + '<end>\n' }}"
    "{% else %}{{ '<|' + m.role + '|>\n' + m.content + '<end>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}"
    "{{ raise_exception('roles are user and assistant.') }}{% endif %}{{ m.content }}<end>{% endfor %}"
)
SILENT = "{% for m in messages if m.role in ('user', 'assistant') %}{{ m.content }}<end>{% endfor %}"


def words(template: str | None = None, end: str | None = "<end>") -> PreTrainedTokenizerFast:
    """Tokenizer of words and line ends; every other word is unknown."""
    names = "[UNK] [PAD] <end> <|user|> <|assistant|> <|system|> the film is good bad why so fine"
    vocabulary = {word: n for n, word in enumerate(names.split(" "))}
    model = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<|user|>", "<|assistant|>", "<|system|>", "<end>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="[UNK]", pad_token="[PAD]", eos_token=end
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special[: 3 if end else 4]})
    if template:
        tokenizer.chat_template = template
    return tokenizer


def turns(*contents: str, roles: Sequence[str] = ("user", "assistant")) -> list[dict[str, str]]:
    return [{"role": roles[n % len(roles)], "content": content} for n, content in enumerate(contents)]


def task_of(path: Path, rows: list[dict[str, Any]], tokenizer: Any, length: int = 64) -> TokenisedTask:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tokenise(open_task(str(path)), tokenizer, length)


def numbered(rows: list[dict[str, Any]], count: int = 12) -> list[dict[str, Any]]:
    """``count`` rows whose prompts differ by a number."""
    text = json.dumps(rows)
    return [row for n in range(count) for row in json.loads(text.replace("NUMBER", str(n)))]


def answers(task: TokenisedTask, tokenizer: Any, row: int = 0) -> tuple[str, str]:
    """Text of the whole sequence, and of the tokens that are predicted."""
    split = task.splits["train"]
    tokens, targets = split.sequence(row), split.targets_of(row)
    assert np.array_equal(targets[targets != IGNORED], tokens[targets != IGNORED])
    return tokenizer.decode(tokens), tokenizer.decode(tokens[targets != IGNORED])


def test_every_answer_of_a_conversation_is_predicted_with_its_end_marker(tmp_path: Path) -> None:
    tokenizer = words(CHATML)
    messages = [{"role": "system", "content": "so"}, *turns("why NUMBER", "the film", "is bad", "good")]
    task = task_of(tmp_path / "x.jsonl", numbered([{"messages": messages}]), tokenizer)
    whole, predicted = answers(task, tokenizer)
    assert predicted.split() == "the film<end> good<end>".replace("<", " <").split()
    assert whole.split()[:2] == ["<|system|>", "so<end>"] or whole.startswith("<|system|>")
    assert "texts are built by the tokenizer's chat template" in task.report.notes


def test_prompt_and_last_answer_of_a_sequence_are_separable(tmp_path: Path) -> None:
    tokenizer = words(CHATML)
    messages = turns("why NUMBER", "the film", "is bad", "good fine")
    task = task_of(tmp_path / "x.jsonl", numbered([{"messages": messages}]), tokenizer)
    prompt, answer = task.splits["test"].last_answer(0)
    assert tokenizer.decode(answer, skip_special_tokens=True).strip() == "good fine"
    assert tokenizer.convert_ids_to_tokens(int(prompt[-1])) == "<|assistant|>"
    assert np.array_equal(np.concatenate([prompt, answer]), task.splits["test"].sequence(0))


def test_a_template_that_changes_earlier_answers_gives_a_sequence_for_each_answer(tmp_path: Path) -> None:
    tokenizer = words(FORGETS)
    messages = turns("why NUMBER", "so the film", "is bad", "so good")
    task = task_of(tmp_path / "x.jsonl", numbered([{"messages": messages}]), tokenizer)
    split = task.splits["train"]
    assert split.ids[0] == split.ids[1] and len(split) == 20
    assert answers(task, tokenizer, 0)[1].startswith("so the film")
    whole, predicted = answers(task, tokenizer, 1)
    assert predicted.startswith("so good") and "so the film" not in whole and "the film" in whole


def test_completion_follows_its_prompt_as_it_is_and_ends_with_the_end_token(tmp_path: Path) -> None:
    tokenizer = words()
    rows = numbered([{"prompt": "why NUMBER the", "completion": " film is"}])
    task = task_of(tmp_path / "x.jsonl", rows, tokenizer)
    whole, predicted = answers(task, tokenizer)
    assert whole.split()[0] == "why" and predicted.replace("<end>", " <end>").split() == [
        "film",
        "is",
        "<end>",
    ]
    expected = (
        "the tokenizer has no chat template: prompt and completion are joined as they are; an answer ends"
    )
    assert any(note.startswith(expected) for note in task.report.notes)


def test_a_border_inside_a_token_leaves_the_prompt_the_tokens_that_it_has_alone(tmp_path: Path) -> None:
    tokenizer = words()
    rows = numbered([{"prompt": "why NUMBER the", "completion": "film"}])  # joined: one unknown word
    prompt, answer = task_of(tmp_path / "x.jsonl", rows, tokenizer).splits["train"].last_answer(0)
    assert tokenizer.convert_ids_to_tokens(prompt.tolist())[-1] == "the"
    assert tokenizer.convert_ids_to_tokens(answer.tolist()) == ["film", "<end>"]


def test_default_template_of_instructions_has_the_words_of_alpaca() -> None:
    one = dialogue("0", None, [["user", "Name it."], ["assistant", "Good."]], "instruction", "A film")
    text = "".join(segment.text for segment in texts_of(one, words(end=None))[0])
    assert text == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\nName it.\n\n"
        "### Input:\nA film\n\n### Response:\nGood."
    )
    other = dialogue("0", None, [["user", "Name it."], ["assistant", "Good."]], "instruction")
    text = "".join(segment.text for segment in texts_of(other, words())[0])
    assert text.endswith("request.\n\n### Instruction:\nName it.\n\n### Response:\nGood.<end>")


def test_default_template_of_conversations_trains_on_every_answer() -> None:
    said = [["system", "Be fine."], ["user", "a"], ["assistant", "b"], ["user", "c"], ["assistant", "d"]]
    (segments,) = texts_of(dialogue("0", None, said, "chat"), words())
    assert [segment.text for segment in segments if segment.is_answer] == ["b<end>", "d<end>"]
    assert segments[0].text == "Be fine.\n\n"


def test_input_of_an_instruction_is_in_the_users_turn_of_a_chat_template() -> None:
    one = dialogue("0", None, [["user", "the film"], ["assistant", "good"]], "instruction", "is bad")
    (segments,) = texts_of(one, words(CHATML))
    assert segments[0].text == "<|user|>\nthe film\n\nis bad<end>\n<|assistant|>\n"


def test_answers_beyond_max_length_are_cut_and_counted(tmp_path: Path) -> None:
    rows = numbered([{"prompt": "why NUMBER the", "completion": " film is good"}])
    task = task_of(tmp_path / "x.jsonl", rows, words(), length=4)
    assert task.report.counts["texts_cut"] == 12 and set(task.splits["train"].lengths_N) == {4}
    long = [{"prompt": "why " * (2 + 9 * (n > 20)) + str(n), "completion": " film"} for n in range(40)]
    task = task_of(tmp_path / "y.jsonl", long, words(), length=8)
    assert task.report.counts["texts_without_tokens"] == 19
    expected = "19 dialogues have no answer within max_length and were left out (the first: "
    assert any(note.startswith(expected) for note in task.report.notes)
    prompts = numbered([{"prompt": "why " * 9 + "NUMBER", "completion": " film"}])
    remedy = "longer than max_length 8 and were cut there.* or a larger max_length"
    with pytest.raises(DataError, match=f"no text left for train .*{remedy}"):
        task_of(tmp_path / "z.jsonl", prompts, words(), length=8)


def test_labels_of_a_batch_are_targets_and_padding_is_ignored(tmp_path: Path) -> None:
    rows = [{"prompt": f"why {n}", "completion": " film" + " is" * (n % 3)} for n in range(20)]
    task = task_of(tmp_path / "x.jsonl", rows, words())
    for batch in evaluation_batches(task.splits["train"], task.kind, task.pad_id, batch_tokens=64):
        kept = batch["labels"] != IGNORED
        assert np.array_equal(batch["labels"][kept], batch["input_ids"][kept])
        assert not kept[batch["attention_mask"] == 0].any() and not kept[:, :2].any()


@pytest.mark.parametrize(
    ("template", "roles", "message"),
    [
        (
            STRICT,
            ("tool", "assistant"),
            "row .* rejects a conversation with the roles tool: roles are user and",
        ),
        (SILENT, ("tool", "assistant"), "row .* leaves out the turn of the role 'tool' "),
        (
            None,
            ("tool", "assistant"),
            "row .* turn of the role 'tool': the tokenizer has no chat template, and",
        ),
    ],
)
def test_roles_that_a_template_does_not_have_are_refused_with_the_row(
    tmp_path: Path, template: str | None, roles: Sequence[str], message: str
) -> None:
    rows = numbered([{"messages": turns("why NUMBER", "good", roles=roles)}])
    with pytest.raises(DataError, match=message):
        task_of(tmp_path / "x.jsonl", rows, words(template))


def test_errors_of_templates_name_the_row_in_its_file_of_several(tmp_path: Path) -> None:
    rows = numbered([{"messages": turns("why NUMBER", "good")}])
    wrong = {"messages": turns("why", "good", roles=("tool", "assistant"))}
    for name, part in {"train-0": rows, "train-1": [*rows[:6], wrong], "valid": rows, "test": rows}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    for template in (STRICT, SILENT, None):
        with pytest.raises(DataError, match=r"^row 7 of train-1\.jsonl(:| has)"):
            tokenise(open_task(str(tmp_path)), words(template), 64)


def said(*pairs: tuple[str, str]) -> Any:
    return dialogue("0", None, pairs, "chat")


@pytest.mark.parametrize(
    "pairs",
    [
        [("user", "the film is good"), ("tool", "the film"), ("assistant", "so")],
        [("tool", "the film"), ("user", "the film is good"), ("assistant", "so")],
        [("user", "why"), ("tool", "the film"), ("assistant", "the film is good")],
        [("user", "the film"), ("assistant", "good"), ("tool", "the film"), ("assistant", "so")],
        [("user", "the film"), ("assistant", "good"), ("tool", "good"), ("assistant", "so")],
    ],
)
def test_a_turn_that_a_template_ignores_is_refused_if_another_turn_has_its_words(
    pairs: list[tuple[str, str]],
) -> None:
    assert texts_of(said(*pairs), words(CHATML))
    with pytest.raises(DataError, match=r"leaves out the turn of the role 'tool' \('(the film|good)'\)"):
        texts_of(said(*pairs), words(SILENT))


def test_equal_turns_are_accepted_if_each_is_in_the_text() -> None:
    pairs = [("user", "why"), ("assistant", "why"), ("user", "why"), ("user", "why so"), ("assistant", "so")]
    for template in (CHATML, SILENT, FORGETS):
        assert texts_of(said(*pairs), words(template))


def test_a_template_may_write_a_system_turn_before_the_turns_that_it_follows() -> None:
    template = "{% for m in messages | sort(attribute='role') %}{{ m.role + m.content }}<end>{% endfor %}"
    assert texts_of(said(("user", "film"), ("system", "the film"), ("assistant", "good")), words(template))


def test_an_answer_with_other_white_space_begins_where_prompt_and_text_differ() -> None:
    template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content.split() | join(' ') }}<end>{% endfor %}"
        "{% if add_generation_prompt %}assistant: <think>{% endif %}"
    )
    (text,) = texts_of(said(("user", "why"), ("assistant", "so \n good")), words(template))
    assert [(part.text, part.is_answer) for part in text] == [
        ("user: why<end>assistant: ", False),
        ("so good<end>", True),
    ]


@pytest.mark.parametrize("expression", ["1 // (messages | length - 1)", "messages[0].content.index('zzz')"])
def test_a_template_that_fails_on_the_turns_of_a_row_is_refused_with_the_row(expression: str) -> None:
    template = f"{{{{ {expression} }}}}" + SILENT
    with pytest.raises(DataError, match="example 0: the tokenizer's chat template rejects a conversation"):
        texts_of(said(("user", "why"), ("assistant", "so")), words(template))


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ messages[0].content }", "unexpected '}'"),
        ("{% for m in messages %}{{ m.content }}", "Unexpected end of template"),
        ("{{ messages[0].content | nofilter }}", "No filter named 'nofilter'"),
    ],
)
def test_broken_jinja_is_a_fault_of_the_template_and_not_of_a_row(
    template: str, problem: str, tmp_path: Path
) -> None:
    expected = f"^the tokenizer's chat template is no valid Jinja: {problem}.*Correct its chat_template"
    with pytest.raises(DataError, match=expected) as error:
        task_of(tmp_path / "x.jsonl", numbered([GOOD]), words(template))
    assert "row" not in str(error.value) and "roles" not in str(error.value)


GOOD = {"messages": turns("why NUMBER", "good")}
LEFT_OUT = {
    "no turn of the assistant": {"messages": turns("why", "so", roles=("user",))},
    "no turn before the assistant's": {"messages": turns("so", roles=("assistant",))},
    "an empty turn": {"messages": turns("why", " ")},
    "no messages": {"messages": []},
}


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_conversations_to_learn_nothing_from_are_left_out_and_counted(tmp_path: Path, reason: str) -> None:
    rows = [*numbered([GOOD]), LEFT_OUT[reason]]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = open_task(str(tmp_path / "x.jsonl")).load().report
    assert report.counts["rows_without_text"] == 1
    expected = f"1 of 13 rows have {reason} and were left out (the first: row 13 (line 13))"
    assert expected in report.notes


@pytest.mark.parametrize("value", [None, [], "", " \n", float("nan"), "null", "nan", "NaN", "<NA>", "[]"])
@pytest.mark.parametrize("column", ["messages", "conversations", "completion"])
def test_a_missing_conversation_is_left_out_and_counted_in_every_form(
    tmp_path: Path, value: Any, column: str
) -> None:
    prompt, answer = turns("why NUMBER"), turns("good", roles=("assistant",))
    rows = numbered([{"prompt": prompt, "completion": answer} if column == "completion" else GOOD])
    rows = [{column if key == "messages" else key: cell for key, cell in row.items()} for row in rows]
    rows.append({**rows[0], column: value})
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = open_task(str(tmp_path / "x.jsonl")).load().report
    name = "completion" if column == "completion" else "messages"
    assert f"1 of 13 rows have no {name} and were left out (the first: row 13 (line 13))" in report.notes


def test_a_blank_cell_of_a_conversation_is_left_out_and_counted(tmp_path: Path) -> None:
    cells = [json.dumps(row["messages"]).replace('"', '""') for row in numbered([GOOD])]
    content = ["messages,system\n", *(f'"{cell}",fine\n' for cell in cells), ",fine\n"]
    (tmp_path / "x.csv").write_text("".join(content))
    report = open_task(str(tmp_path / "x.csv")).load().report
    assert "1 of 13 rows have no messages and were left out (the first: row 13 (line 14))" in report.notes


def test_rows_of_other_columns_are_counted_and_refused_if_they_are_most(tmp_path: Path) -> None:
    pairs = [{"prompt": f"why {n}", "completion": "good"} for n in range(20)]
    few, many = tmp_path / "few.jsonl", tmp_path / "many.jsonl"
    few.write_text("".join(json.dumps(row) + "\n" for row in [*pairs, *numbered([GOOD], 3)]))
    expected = "3 of 23 rows have no prompt and were left out (the first: row 21 (line 21))"
    assert expected in open_task(str(few)).load().report.notes
    many.write_text("".join(json.dumps(row) + "\n" for row in [*numbered([GOOD], 30), *pairs]))
    message = (
        r"mixes rows of different columns: 20 have prompt and completion, 30 have not \(the first: row 1 "
    )
    with pytest.raises(DataError, match=message):
        open_task(str(many))


def test_empty_completions_are_left_out_and_a_file_of_them_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt": f"why {n}", "completion": "" if n % 2 else "good"} for n in range(24)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes = open_task(str(tmp_path / "x.jsonl")).load().report.notes
    assert "12 of 24 rows have no completion and were left out (the first: row 2 (line 2))" in notes
    chat = [json.dumps({"messages": turns("why", roles=("user",))}) + "\n"] * 20
    (tmp_path / "y.jsonl").write_text("".join(chat))
    expected = (
        r"0 rows to learn from \(20 with no turn of the assistant; the first: row 1 \(line 1\)\); at least"
    )
    with pytest.raises(DataError, match=expected):
        open_task(str(tmp_path / "y.jsonl"))


def test_turns_after_the_last_answer_are_not_used_and_counted(tmp_path: Path) -> None:
    rows = numbered([{"messages": turns("why NUMBER", "good", "why so")}])
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = open_task(str(tmp_path / "x.jsonl")).load()
    assert [turn.content for turn in texts.splits["test"][0].turns][1:] == ["good"]
    expected = "12 of 12 rows end with turns without an answer, which are not used"
    assert expected in texts.report.notes


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (
            [{"speaker": "a"}],
            "messages of row 13 .* has a turn 1 with speaker; expected 'role' and 'content'",
        ),
        ([{"from": "narrator", "value": "x"}], "unknown speaker 'narrator' in turn 1; one of human, user"),
        (["why"], "has no object as turn 1"),
        ([{"role": "user", "content": None}], "has no text in turn 1 but NoneType; images, tool calls"),
        ([{"from": ["human"], "value": "x"}], r"unknown speaker \['human'\] in turn 1; one of human"),
        ([{"from": {"a": 1}, "value": "x"}], "unknown speaker {'a': 1} in turn 1"),
        ([{"from": "human", "value": 3}], "has no text in turn 1 but int"),
        ([{"from": "human", "value": {"text": "x"}}], "has no text in turn 1 but dict"),
        ([{"role": "user", "content": [["x"]]}], "has no text in turn 1 but list"),
        ([{"role": "user", "content": [{"text": 3}]}], "has no text in turn 1 but list"),
        ([{"role": 3, "content": "x"}], "has the role 3 in turn 1"),
        ([{"role": ["user"], "content": "x"}], r"has the role \['user'\] in turn 1"),
        ([{"role": "\ud800", "content": "x"}], "has half of a surrogate pair"),
        ({"role": "user"}, "is of type dict, expected a list of turns"),
        ("not json", "is text that is no JSON list of turns"),
    ],
)
def test_malformed_turns_are_refused_with_their_row(tmp_path: Path, messages: Any, message: str) -> None:
    rows = [*numbered([GOOD]), {"messages": messages}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=message):
        open_task(str(tmp_path / "x.jsonl"))
