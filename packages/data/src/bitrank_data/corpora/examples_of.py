"""Tasks made of records: summaries, dialogues, instructions, questions, facts as examples of their kind."""

from __future__ import annotations

from collections.abc import Callable

from bitrank_data.conversations import dialogue
from bitrank_data.corpora import records
from bitrank_data.corpora.records import Splits
from bitrank_data.examples import ASSISTANT, USER, Example, TargetExample, Texts
from bitrank_data.kinds import INSTRUCTION, PROBING, QUESTION_ANSWERING, SEQUENCE_TO_SEQUENCE
from bitrank_data.probing import read_fact
from bitrank_data.question_answering import read_question
from bitrank_data.tables import Row


def natural_instructions() -> Texts:
    """Instructions with an input; the answer is the first right one."""
    return _texts(INSTRUCTION, records.natural_instructions(), instruction_example)


def topical_chat() -> Texts:
    """Conversations on topics; the second speaker is the assistant."""
    return _texts(INSTRUCTION, records.topical_chat(), conversation_example)


def chitchat_dialogues() -> Texts:
    """Conversations of two strangers; the second speaker is the assistant."""
    return _texts(INSTRUCTION, records.chitchat_messages(), conversation_example)


def disfl_qa() -> Texts:
    """Questions about passages, some without an answer."""
    return _texts(QUESTION_ANSWERING, records.disfl_qa(), lambda record: read_question(record["id"], record))


def qa_wikidata() -> Texts:
    """Prompts and the object that continues them."""
    return _texts(PROBING, records.qa_wikidata(), lambda record: read_fact(record["id"], record))


def xsum() -> Texts:
    """News articles and a summary of one sentence."""
    return _texts(SEQUENCE_TO_SEQUENCE, records.xsum(), summary_example)


def wikilingua() -> Texts:
    """How-to texts and their steps as summary."""
    return _texts(SEQUENCE_TO_SEQUENCE, records.wikilingua(), summary_example)


def summary_example(record: Row) -> Example:
    """The source is the text and the summary the target."""
    return TargetExample(record["id"], record["source"], target=record["target"])


def instruction_example(record: Row) -> Example:
    """The instruction is the user's turn and the output the assistant's."""
    turns = ((USER, record["instruction"]), (ASSISTANT, record["output"]))
    return dialogue(record["id"], None, turns, "instruction", record["input"])


def conversation_example(record: Row) -> Example:
    """All turns up to the assistant's last one."""
    turns = [(turn["role"], turn["content"]) for turn in record["messages"]]
    if turns[-1][0] != ASSISTANT:
        turns.pop()
    return dialogue(record["id"], None, turns, "chat")


def _texts(kind: str, splits: Splits, make: Callable[[Row], Example]) -> Texts:
    return Texts(kind, {name: list(map(make, part)) for name, part in splits.items()})
