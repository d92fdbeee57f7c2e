"""Records of kinds with more than one text: summaries, dialogues, instructions, questions, facts.

Functions with the name of a task return its splits; the others make records of the rows of an archive. A
record has a stable ``id`` and fields with the names of the columns of a user's file of that kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from bitrank_data.assets import asset_dir
from bitrank_data.corpora.groups import connected, split_groups
from bitrank_data.splitting import text_key
from bitrank_data.tables import Row, read_table

Splits = dict[str, list[Row]]
_UNKNOWN = "unknown"  # answer to a question that its context does not answer
_LONG = 80  # characters; two inputs that share a line of this length are about the same passage
_TURNS = 4  # a conversation with fewer was abandoned


def xsum() -> Splits:
    """1,001 news articles with a summary of one sentence: 400 for test, 100 for validation."""
    return _split(summaries(_rows("xsum"), "xsum"), lambda record: [record["source"]], 400, 100)


def wikilingua() -> Splits:
    """1,001 how-to texts with their steps as summary: 400 for test, 100 for validation."""
    return _split(summaries(_rows("wikilingua"), "wikilingua"), lambda record: [record["source"]], 400, 100)


def summaries(rows: Sequence[Row], prefix: str) -> list[Row]:
    """``source`` and ``target`` of each row."""
    return [
        {"id": f"{prefix}-{row['number']}", "source": row["input"], "target": row["targets"][0]}
        for row in rows
    ]


def topical_chat() -> Splits:
    """1,078 conversations of about 21 turns on given topics: 400 for test, 100 for validation."""
    return _split(conversations(_rows("topical_chat")), lambda record: [record["id"]], 400, 100)


def conversations(rows: Sequence[Row]) -> list[Row]:
    """``messages`` of each conversation; its second speaker is the assistant.

    The rows of a conversation, whose name is ``source``, have its turns up to one as input and the next as
    target, in order.
    """
    targets: dict[str, list[str]] = {}
    for row in rows:
        first = row["input"].partition(": ")[2]
        targets.setdefault(row["source"], [first]).append(row["targets"][0])
    return [
        {"id": f"topical-{name}", "messages": _messages(turn.strip().strip('"').strip() for turn in turns)}
        for name, turns in targets.items()
    ]


def chitchat_messages() -> Splits:
    """Conversations of two strangers with four turns or more: 1,000 for test, 200 for validation."""
    rows = read_table(asset_dir("chitchat") / "chitchat.parquet")
    records = []
    for row in rows:
        if len(row["turns"]) >= _TURNS and len(set(row["speakers"])) == len(_ROLES):
            records.append({"id": f"chitchat-{row['name']}", "messages": _messages(row["turns"])})
    return _split(records, lambda record: [record["id"]], 1000, 200)


_ROLES = ("user", "assistant")


def _messages(turns: Iterable[str]) -> list[dict[str, str]]:
    return [{"role": _ROLES[number % 2], "content": turn} for number, turn in enumerate(turns)]


def natural_instructions() -> Splits:
    """61 instructions with at most 400 inputs each: 2,000 records for test, 500 for validation.

    Inputs about the same passage are in one split, across instructions.
    """
    return _split(instructions(_rows("natural_instructions")), _passages, 2000, 500)


def instructions(rows: Sequence[Row]) -> list[Row]:
    """``instruction``, ``input`` and ``output`` (the first of the right ones) of each different row."""
    records: dict[str, Row] = {}
    for row in rows:
        part = row["part"].rpartition("/")[2]
        fields = {"instruction": row["prefix"].strip(), "input": row["input"], "output": row["targets"][0]}
        key = text_key(f"{row['prefix']}\n{row['input']}")
        records.setdefault(key, {"id": f"{part}-{row['number']}", **fields})
    return list(records.values())


def _passages(record: Row) -> list[str]:
    """Keys of the long lines of an input, without the word that introduces a line (``Passage:``)."""
    lines = (re.sub(r"^\w+: ", "", line) for line in record["input"].splitlines())
    return [text_key(line) for line in lines if len(line) >= _LONG] or [text_key(record["input"])]


def disfl_qa() -> Splits:
    """Questions with disfluencies about Wikipedia passages; at least 2,000 for test, 500 for validation.

    Questions about one passage are in one split.
    """
    return _split(questions(_rows("disfl_qa")), lambda record: [text_key(record["context"])], 2000, 500)


def questions(rows: Sequence[Row]) -> list[Row]:
    """``question``, ``context`` and ``answers`` in SQuAD's form; without answers if it is unknown.

    The context was split into words with spaces between them, the answer was not. An answer is therefore
    found by its characters without spaces, and is then the text of the context. The first of its places is
    given. Left out are empty and repeated questions, and those whose answer is not in their context.
    """
    records: dict[str, Row] = {}
    for row in rows:
        question, _, context = row["input"].partition("\ncontext: ")
        answer = row["targets"][0]
        start, end = (0, 0) if answer == _UNKNOWN else _place(answer, context)
        if start < 0 or not question.strip():
            continue
        answers = {"text": [context[start:end]], "answer_start": [start]}
        if answer == _UNKNOWN:
            answers = {"text": [], "answer_start": []}
        fields = {"question": question.strip(), "context": context, "answers": answers}
        records.setdefault(text_key(row["input"]), {"id": f"disfl-{row['number']}", **fields})
    return list(records.values())


def _place(answer: str, context: str) -> tuple[int, int]:
    """First character of ``answer`` in ``context`` and the one after its last; −1 if it is not there."""
    characters = (re.escape(character) for character in answer if not character.isspace())
    found = re.search(r"\s*".join(characters), context)
    return found.span() if found else (-1, -1)


def qa_wikidata() -> Splits:
    """Prompts about facts of Wikidata with the object that continues them; 10,000 for test."""
    return _split(facts(_rows("qa_wikidata")), lambda record: [text_key(record["prompt"])], 10_000, 1000)


def facts(rows: Sequence[Row]) -> list[Row]:
    """``prompt`` and ``object``, of prompts with one right object."""
    objects: dict[str, set[str]] = {}
    first: dict[str, Row] = {}
    for row in rows:
        key = text_key(row["input"])
        objects.setdefault(key, set()).update(row["targets"])
        first.setdefault(key, row)
    records = []
    for key, row in first.items():
        if len(objects[key]) == 1:
            fields = {"prompt": row["input"].strip(), "object": row["targets"][0]}
            records.append({"id": f"wikidata-{row['number']}", **fields})
    return records


def _rows(name: str) -> list[Row]:
    return read_table(asset_dir("bigbench") / f"{name}.parquet")


def _split(
    records: Sequence[Row], keys: Callable[[Row], Iterable[str]], test: int, validation: int
) -> Splits:
    return split_groups(connected(records, keys), lambda record: str(record["id"]), test, validation)
