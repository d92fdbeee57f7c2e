"""Jinja forms of the texts that :mod:`bitrank_data` makes for tokenizers without a chat template.

A run on instructions learns these texts, so programs that load the exported model must write them too. Each
form gives the text of training, as tests compare. The wording is repeated here, and not part of the data
package, whose sources are all part of the identity of results.
"""

from __future__ import annotations

import json

_TASK = "Write a response that appropriately completes the request."
_PREAMBLE = f"Below is an instruction that describes a task. {_TASK}"
_PREAMBLE_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    f"{_TASK}"
)
_INPUT = "\n\n### Input:\n"  # after an instruction, in the turn of the user


def chat_template(style: str, begins_with_bos: bool, has_end: bool) -> str:
    """The template of dialogues of ``style``, of which instructions may have an input.

    ``begins_with_bos``: sequences begin with the tokenizer's token for it. ``has_end``: the tokenizer has a
    token for the end of a text, which closes answers.
    """
    begin = "{{ bos_token }}" if begins_with_bos else ""
    end = "{{ eos_token }}" if has_end else ""
    if style == "completion":
        return begin + _joined(end)
    return begin + _preamble(has_input=style == "instruction") + _turns(end)


# Everything is on one line, because programs differ in what they do with line ends between tags.


def _joined(end: str) -> str:
    return (
        "{% for message in messages %}{{ message['content'] }}"
        "{% if message['role'] == 'assistant' %}" + end + "{% endif %}{% endfor %}"
    )


def _preamble(has_input: bool) -> str:
    """A system turn, or the sentences that stand for one."""
    with_input = "{% elif " + json.dumps(_INPUT) + " in messages[0]['content'] %}" + _PREAMBLE_WITH_INPUT
    return (
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
        + (with_input if has_input else "")
        + "{% else %}"
        + _PREAMBLE
        + "{% endif %}{{ '\\n\\n' }}"
    )


def _turns(end: str) -> str:
    return (
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
        "{% elif message['role'] == 'assistant' %}{{ '### Response:\\n' + message['content'] }}"
        + end
        + "{% if add_generation_prompt or not loop.last %}{{ '\\n\\n' }}{% endif %}"
        "{% elif message['role'] != 'system' or not loop.first %}"
        "{{ raise_exception('expected turns of user and assistant, and of system as the first') }}"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
    )
