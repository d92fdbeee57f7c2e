"""Text of a conversation: the tokenizer's chat template, or a stated default.

A text is a list of segments; those of the assistant's answers are trained on. Without a chat template, the
style of the example chooses one of :data:`DEFAULT_TEMPLATES`: Alpaca's wording for instructions and
conversations (https://github.com/tatsu-lab/stanford_alpaca), and prompt and completion as they are.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bitrank_data.errors import DataError, ExampleError
from bitrank_data.examples import ASSISTANT, SYSTEM, USER, Dialogue, Turn
from bitrank_data.rows import quoted, shortened, shown

_TASK = "Write a response that appropriately completes the request."
_PREAMBLE = f"Below is an instruction that describes a task. {_TASK}"
_PREAMBLE_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    f"{_TASK}"
)
# Templates that print the day of today print this one, so that a text is the same on every day. It is the
# date that Llama 3's template has where none is known.
_DATE = datetime(2024, 7, 26)
_TODAY = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<form>.*?)(?P=quote)\s*\)""")
_REASON = 300  # characters of a template's own message, which may quote a turn


@dataclass(frozen=True)
class Segment:
    """Part of a text; ``is_answer``: the model is trained on its tokens."""

    text: str
    is_answer: bool = False


Text = list[Segment]


def texts_of(dialogue: Dialogue, tokenizer: Any) -> list[Text]:
    """Texts of ``dialogue`` for ``tokenizer``: one, unless its chat template changes earlier turns later.

    Raises :class:`ExampleError` if the template rejects or drops a turn.
    """
    if has_chat_template(tokenizer):
        return _rendered(dialogue, tokenizer)
    end = getattr(tokenizer, "eos_token", None) or ""
    return [DEFAULT_TEMPLATES[dialogue.style].segments(dialogue, end)]


def has_chat_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def template_note(dialogue: Dialogue, tokenizer: Any) -> str:
    """Note for the user on the template of a task like ``dialogue``."""
    if has_chat_template(tokenizer):
        return "texts are built by the tokenizer's chat template"
    end = getattr(tokenizer, "eos_token", None)
    ending = f"an answer ends with {end}" if end else "the tokenizer has no token for the end of an answer"
    return f"the tokenizer has no chat template: {DEFAULT_TEMPLATES[dialogue.style].about}; {ending}"


def _rendered(dialogue: Dialogue, tokenizer: Any) -> list[Text]:
    """Text by the chat template, cut before and after each answer.

    Some templates leave parts of earlier answers out once later turns follow. Then each answer gets a text
    of its own, in which it is the last turn, as when the model is used.
    """
    turns = _with_input(dialogue)
    separate: list[tuple[str, str]] = []
    checked, before = 0, ""  # turns that are known to be in a text, and the last such text
    for number, turn in enumerate(turns):
        # An answer that opens a conversation has no prompt, and is context.
        if turn.role == ASSISTANT and number:
            prompt = _render(dialogue, turns[:number], tokenizer, prompt=True)
            whole = _render(dialogue, turns[: number + 1], tokenizer, prompt=False)
            _refuse_dropped(dialogue, turns[checked : number + 1], before, whole)
            prompt = _context(dialogue, turns[: number + 1], tokenizer, prompt, whole)
            separate.append(_cut(prompt, whole, turn.content.strip()))
            checked, before = number + 1, whole
    text, end = [], ""
    for context, answer in separate:
        if not context.startswith(end):
            return [[Segment(before), Segment(after, True)] for before, after in separate]
        text += [Segment(context[len(end) :]), Segment(answer, True)]
        end = context + answer
    return [text]


def _context(dialogue: Dialogue, turns: Sequence[Turn], tokenizer: Any, prompt: str, whole: str) -> str:
    """The part of ``whole``, the text of ``turns``, that precedes the last of them, an answer.

    It is ``prompt``, the text for generation, except that the answer begins where another answer changes the
    text if ``prompt`` is no part of it, as where it opens a thought, or lacks the answer's header, as with
    templates that ignore ``add_generation_prompt``.
    """
    begins = whole.startswith(prompt)
    if begins and prompt != _render(dialogue, turns[:-1], tokenizer, prompt=False):
        return prompt
    other = [*turns[:-1], Turn(ASSISTANT, "\0")]  # no answer has a NUL character
    shared = _shared(whole, _render(dialogue, other, tokenizer, prompt=False))
    # White space alone is no header: after `[/INST]` a model writes the space too, in one token with a word.
    return prompt if begins and not shared[len(prompt) :].strip() else shared


def _cut(prompt: str, whole: str, answer: str) -> tuple[str, str]:
    """Context, and answer with its end marker, of the text ``whole``, whose last turn is ``answer``.

    ``whole`` begins with ``prompt``.
    """
    body = whole[len(prompt) :]
    closed = body.rstrip()
    # White space after an end marker separates turns; without a marker it may belong to the answer.
    return prompt, body if closed.endswith(answer) else closed


def _render(dialogue: Dialogue, turns: Sequence[Turn], tokenizer: Any, prompt: bool) -> str:
    from jinja2 import TemplateError, TemplateSyntaxError

    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        template = _undated(tokenizer.get_chat_template())
        text: str = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=prompt
        )
    except TemplateSyntaxError as error:
        raise DataError(
            f"the tokenizer's chat template is no valid Jinja: {shortened(str(error), _REASON)}. Correct its "
            "chat_template, or give another tokenizer"
        ) from error
    except (TemplateError, TypeError, LookupError, ValueError, ArithmeticError) as error:
        reason = shortened(str(error).rstrip("."), _REASON) or type(error).__name__
        roles = shown([turn.role for turn in turns])
        raise ExampleError(
            dialogue.id,
            f": the tokenizer's chat template rejects a conversation with the roles {roles}: {reason}. "
            "Change or remove these turns, or give a tokenizer whose template has them",
        ) from error
    return text


def _undated(template: str) -> str:
    """``template`` with the text of a fixed day in place of its calls for the day of today."""
    return _TODAY.sub(lambda call: json.dumps(_DATE.strftime(call["form"])), template)


def _refuse_dropped(dialogue: Dialogue, turns: Sequence[Turn], before: str, text: str) -> None:
    """Raise :class:`ExampleError` unless each of ``turns`` has a place of its own in ``text``.

    Templates ignore roles without a rule. ``before`` is the text of the earlier turns; the part that both
    texts begin with has no place for ``turns``. White space is not compared, since templates change it.
    Earlier answers are not searched again, since templates may leave their thoughts out by now.
    """
    old, rest = _without_space(before), _without_space(text)
    rest = rest[len(_shared(old, rest)) :]
    # The longest first: a short turn may be a part of a long one, whichever comes first in the text.
    for turn in sorted(turns, key=lambda turn: -len(_without_space(turn.content))):
        content = _without_space(turn.content)
        place = rest.find(content)
        if place < 0:
            raise ExampleError(
                dialogue.id,
                f": the tokenizer's chat template leaves out the turn of the role {quoted(turn.role)} "
                f"({quoted(turn.content)}). Remove such turns, or give a tokenizer whose template has the "
                "role",
            )
        # No turn has a NUL character, so no other turn is found across this place.
        rest = f"{rest[:place]}\0{rest[place + len(content) :]}"


def _without_space(text: str) -> str:
    return "".join(text.split())


def _shared(first: str, second: str) -> str:
    """The text that both begin with."""
    lengths = range(1, min(len(first), len(second)) + 1)
    return first[: bisect_left(lengths, True, key=lambda length: first[:length] != second[:length])]


def _with_input(dialogue: Dialogue) -> tuple[Turn, ...]:
    """Turns, with the input of an instruction in the user's turn."""
    if not dialogue.given:
        return dialogue.turns
    first, *others = dialogue.turns
    return Turn(first.role, f"{first.content}\n\n{dialogue.given}"), *others


def _joined(dialogue: Dialogue, end: str) -> Text:
    prompt, answer = dialogue.turns
    return [Segment(prompt.content), Segment(f"{answer.content}{end}", True)]


def _alpaca(dialogue: Dialogue, end: str) -> Text:
    """Alpaca's text; a system turn replaces the first sentence, and further questions follow below."""
    given = f"### Input:\n{dialogue.given}\n\n" if dialogue.given else ""
    preamble = _PREAMBLE_WITH_INPUT if dialogue.given else _PREAMBLE
    turns = list(dialogue.turns)
    if turns[0].role == SYSTEM:
        preamble = turns.pop(0).content
    segments = [Segment(f"{preamble}\n\n")]
    for number, turn in enumerate(turns):
        if turn.role == USER:
            segments.append(Segment(f"### Instruction:\n{turn.content}\n\n{given if number == 0 else ''}"))
        elif turn.role == ASSISTANT:
            is_last = number == len(turns) - 1
            segments.append(Segment("### Response:\n"))
            segments.append(Segment(f"{turn.content}{end}", is_answer=number > 0))
            segments.append(Segment("" if is_last else "\n\n"))
        else:
            raise ExampleError(
                dialogue.id,
                f" has a turn of the role {quoted(turn.role)}: the tokenizer has no chat template, and the "
                f"default one has {USER}, {ASSISTANT}, and {SYSTEM} as the first. Remove the turn, or give a "
                "tokenizer with a chat template",
            )
    return segments


@dataclass(frozen=True)
class DefaultTemplate:
    """Segments of a dialogue, with the text of the token that ends an answer, and a sentence about them."""

    segments: Callable[[Dialogue, str], Text]
    about: str


DEFAULT_TEMPLATES: dict[str, DefaultTemplate] = {
    "completion": DefaultTemplate(_joined, "prompt and completion are joined as they are"),
    "instruction": DefaultTemplate(_alpaca, "instructions are worded as in Alpaca"),
    "chat": DefaultTemplate(_alpaca, "conversations are worded as instructions in Alpaca"),
}
