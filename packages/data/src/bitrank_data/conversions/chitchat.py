"""Rows of chitchat-dataset: conversations between two strangers, turn by turn."""

from __future__ import annotations

import json

from bitrank_data.tables import Row, Table


def rows_of_dataset(path: str, content: bytes) -> list[Row]:
    """One row per conversation; messages of one sender in a row are one turn, a line each.

    ``speakers`` numbers the senders of a conversation in order of appearance; their ids are not kept.
    """
    rows = []
    for name, conversation in json.loads(content).items():
        numbers: dict[str, str] = {}
        speakers: list[str] = []
        turns: list[str] = []
        for message in (message for turn in conversation["messages"] for message in turn):
            text = " ".join(message["text"].split())
            if not text:
                continue
            speaker = numbers.setdefault(message["sender"], str(len(numbers) + 1))
            if speakers and speakers[-1] == speaker:
                turns[-1] += f"\n{text}"
            else:
                speakers.append(speaker)
                turns.append(text)
        prompt = conversation.get("prompt", "")  # early conversations have none
        rows.append({"name": name, "prompt": prompt, "speakers": speakers, "turns": turns})
    return rows


_COLUMNS = {"name": "string", "prompt": "string", "speakers": "list<string>", "turns": "list<string>"}
TABLES: dict[str, Table] = {"chitchat.parquet": Table(r"dataset\.json$", rows_of_dataset, _COLUMNS)}
