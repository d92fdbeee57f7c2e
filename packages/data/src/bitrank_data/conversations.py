"""Layouts of instruction data: prompt and completion, instruction and output, conversations.

Conversations are lists of turns with ``role`` and ``content``, or ``from`` and ``value`` (ShareGPT).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bitrank_data.errors import ExampleError
from bitrank_data.examples import ASSISTANT, SYSTEM, USER, Dialogue, TargetExample, Turn
from bitrank_data.layouts import REMARK, Layout, LeftOut, Refused, check_text, is_missing, text_of
from bitrank_data.rows import quoted, shown

_SPEAKERS = {  # names in ``from`` and ``role``, in any case, and their roles
    "human": USER,
    "user": USER,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bot": ASSISTANT,
    "model": ASSISTANT,
    "assistant": ASSISTANT,
    "system": SYSTEM,
}
_MESSAGES, _INSTRUCTION, _INPUT, _OUTPUT = "messages", "instruction", "input", "output"
_PROMPT, _COMPLETION = "prompt", "completion"
_USED = {"role", "content", "from", "value", "name", "weight"}  # keys of a turn that are read, or checked
_CALLS = ("tool_calls", "function_call")
_NOT_SUPPORTED = "images, tool calls and empty turns are not supported"


def dialogue(
    id: str, label: int | None, turns: Sequence[Sequence[str]], style: str, given: str = ""
) -> Dialogue:
    """Example of stored fields; ``turns`` has pairs of role and content."""
    parts = tuple(Turn(*turn) for turn in turns)
    text = "\n\n".join(f"{turn.role}: {turn.content}" for turn in parts)
    return Dialogue(id, text, label, parts, style, given)


def _chat(cells: Mapping[str, Any]) -> dict[str, Any]:
    given = _given(cells.get(_MESSAGES), _MESSAGES)
    turns = _turns(given, _MESSAGES)
    if SYSTEM in cells and (not turns or turns[0][0] != SYSTEM):
        turns = [*_system(cells), *turns]
    return _conversation(turns, given)


def _system(cells: Mapping[str, Any]) -> list[list[str]]:
    try:
        return [[SYSTEM, text_of(cells, SYSTEM)]]
    except LeftOut:  # many files have the column, and leave it empty
        return []


def _completion(cells: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(cells.get(_PROMPT), list):
        before, after = _given(cells[_PROMPT], _PROMPT), _given(cells.get(_COMPLETION), _COMPLETION)
        turns = [*_turns(before, _PROMPT), *_turns(after, _COMPLETION)]
        return _conversation(turns, [*before, *after])
    turns = [[USER, text_of(cells, _PROMPT)], [ASSISTANT, text_of(cells, _COMPLETION)]]
    return {"turns": turns, "style": "completion"}


def _instruction(cells: Mapping[str, Any]) -> dict[str, Any]:
    turns = [[USER, text_of(cells, _INSTRUCTION)], [ASSISTANT, text_of(cells, _OUTPUT)]]
    try:
        given = text_of(cells, _INPUT)
    except LeftOut:  # instructions without an input have an empty one
        given = ""
    return {"turns": turns, "style": "instruction", "given": given}


def _given(value: Any, role: str) -> list[Any]:
    """The turns of a cell, as the file has them."""
    if isinstance(value, str) and not is_missing(value):  # a cell of a CSV file
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise Refused(role, f"is text that is no JSON list of turns ({error})") from error
    if is_missing(value) or value == []:
        raise LeftOut(f"no {role}")
    if not isinstance(value, list):
        raise Refused(role, f"is of type {type(value).__name__}, expected a list of turns")
    return value


def _turns(given: Sequence[Any], role: str) -> list[list[str]]:
    turns = [_turn(turn, number, role) for number, turn in enumerate(given, 1)]
    return [turn for turn in turns if turn != [SYSTEM, ""]]


def _turn(turn: Any, number: int, role: str) -> list[str]:
    expected = "expected 'role' and 'content', or 'from' and 'value'"
    if not isinstance(turn, dict):
        raise Refused(role, f"has no object as turn {number}; {expected}")
    if turn.get("role") is not None:
        speaker, content = _known_role(turn["role"]), turn.get("content")
    elif turn.get("from") is not None:
        speaker, content = _speaker(turn["from"], number, role), turn.get("value")
    else:
        raise Refused(role, f"has a turn {number} with {shown(list(turn)) or 'nothing'}; {expected}")
    if not isinstance(speaker, str) or not speaker:
        raise Refused(role, f"has the role {quoted(speaker)} in turn {number}; expected a name such as user")
    check_text(speaker, role)
    _refuse_unlearned_keys(turn, speaker, number, role)
    return [speaker, _content(content, number, role)]


def _refuse_unlearned_keys(turn: Mapping[str, Any], speaker: str, number: int, role: str) -> None:
    """Raise :class:`Refused` for keys that change what is learned from a turn, and that no text has."""
    if called := [key for key in _CALLS if turn.get(key)]:
        raise Refused(role, f"has {called[0]} in turn {number}; {_NOT_SUPPORTED}")
    weight = turn.get("weight")
    if speaker == ASSISTANT and not is_missing(weight) and weight != 1:
        problem = f"has the weight {quoted(weight)} in turn {number}, but every answer is learned alike"
        raise Refused(role, f"{problem}; remove the row, the answers before the one to learn, or the weight")


def _speaker(name: Any, number: int, role: str) -> str:
    """Role of a name in ``from``."""
    found = _known_role(name)
    if not isinstance(found, str) or found not in _SPEAKERS.values():
        known = ", ".join(_SPEAKERS)
        raise Refused(role, f"has the unknown speaker {quoted(name)} in turn {number}; one of {known}")
    return found


def _known_role(name: Any) -> Any:
    """The role that a known name means; another name, or another value, stays as it is."""
    return _SPEAKERS.get(name.lower(), name) if isinstance(name, str) else name


def _content(content: Any, number: int, role: str) -> str:
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(content) else content
    if not isinstance(content, str):
        problem = f"has no text in turn {number} but {type(content).__name__}"
        raise Refused(role, f"{problem}; {_NOT_SUPPORTED}")
    check_text(content, role)
    return content


def _conversation(turns: list[list[str]], given: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Fields of a conversation, whose turns the file has as ``given``.

    Raises :class:`LeftOut` if no turn is an answer, or one is empty.
    """
    speakers = [speaker for speaker, _ in turns]
    if ASSISTANT not in speakers:
        raise LeftOut("no turn of the assistant")
    if not any(speaker != ASSISTANT for speaker in speakers[: _last(speakers)]):
        raise LeftOut("no turn before the assistant's")
    if any(not content.strip() for _, content in turns):
        raise LeftOut("an empty turn")
    kept = turns[: _last(speakers) + 1]
    remarks = ["end with turns without an answer, which are not used"] if len(kept) < len(turns) else []
    remarks += [f"have turns with {quoted(key)}, which is not used" for key in _unused_keys(given)]
    return {"turns": kept, "style": "chat", **({REMARK: remarks} if remarks else {})}


def _unused_keys(given: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of turns that have a value and are not read; columnar files have every key in every turn."""
    keys: dict[str, None] = {}
    for turn in given:
        for key, value in turn.items():
            if key not in _USED and not is_missing(value) and value not in ([], {}):
                keys[key] = None
    return list(keys)


def _last(speakers: Sequence[str]) -> int:
    return max(number for number, speaker in enumerate(speakers) if speaker == ASSISTANT)


def target_of_dialogue(dialogue: Dialogue) -> TargetExample:
    """Source and target of a prompt and its completion, or of an instruction with its input and its output.

    Raises :class:`ExampleError` for a conversation of other turns.
    """
    roles = [turn.role for turn in dialogue.turns]
    if roles != [USER, ASSISTANT]:
        raise ExampleError(
            dialogue.id,
            f" has the turns {shown(roles)}: an encoder-decoder maps one source "
            f"to one target. Expected one turn of the {USER} and one of the {ASSISTANT}; remove the others, "
            "or give a decoder",
        )
    source, target = (turn.content for turn in dialogue.turns)
    parts = [source, dialogue.given] if dialogue.given else [source]
    return TargetExample(dialogue.id, "\n\n".join(parts), dialogue.label, target)


def dialogue_of_target(example: TargetExample) -> Dialogue:
    """The source as an instruction and the target as its output."""
    turns = ((USER, example.text), (ASSISTANT, example.target))
    return dialogue(example.id, example.label, turns, "instruction")


def instruction_layout(output: str, given: str) -> Layout:
    """Columns ``instruction`` and ``output``, and ``given``: an instruction's input, which may be empty."""
    return Layout({_INSTRUCTION: "instruction", _OUTPUT: output}, _instruction, dialogue, {_INPUT: given})


INSTRUCTIONS = (
    Layout({_PROMPT: "prompt", _COMPLETION: "completion"}, _completion, dialogue),
    Layout({_PROMPT: "prompt", _COMPLETION: "response"}, _completion, dialogue),
    *(
        instruction_layout(output, given)
        for output, given in (("output", "input"), ("response", "input"), ("response", "context"))
    ),
    Layout({_MESSAGES: "messages"}, _chat, dialogue, {SYSTEM: "system"}),
    Layout({_MESSAGES: "conversations"}, _chat, dialogue, {SYSTEM: "system"}),
)
