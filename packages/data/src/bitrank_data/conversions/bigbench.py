"""Rows of BIG-bench's JSON tasks (Srivastava et al. 2022): input, right answers, and choices if given."""

from __future__ import annotations

import hashlib
import json

from bitrank_data.tables import Row, Table

_TASKS = "bigbench/benchmark_tasks"
_COLUMNS = {
    "part": "string",
    "source": "string",
    "number": "int32",
    "prefix": "string",
    "input": "string",
    "targets": "list<string>",
    "choices": "list<string>",
}
# Examples kept of each instruction: the parts have up to ten thousand, and one instruction per part.
_PER_INSTRUCTION = 400


def rows_of_task(path: str, content: bytes) -> list[Row]:
    """All examples of one ``task.json``.

    ``number`` is the place of an example in it, and ``source`` its conversation or document, if named.
    """
    task = json.loads(content)
    part = path.partition(f"{_TASKS}/")[2].rpartition("/")[0]
    rows = []
    for number, example in enumerate(task["examples"]):
        scores = example.get("target_scores")
        if scores:
            best = max(scores.values())
            targets = [choice for choice, score in scores.items() if score == best]
        else:
            given = example["target"]
            targets = [given] if isinstance(given, str) else [str(target) for target in given]
        rows.append(
            {
                "part": part,
                "source": example.get("comment", ""),
                "number": number,
                "prefix": task.get("task_prefix", ""),
                "input": example["input"],
                "targets": targets,
                "choices": list(scores or ()),
            }
        )
    return rows


def some_rows_of_task(path: str, content: bytes) -> list[Row]:
    """As :func:`rows_of_task`, at most 400, chosen by the hash of their input."""
    rows = rows_of_task(path, content)
    rows.sort(key=lambda row: hashlib.sha256(row["input"].encode()).digest())
    return rows[:_PER_INSTRUCTION]


def _table(tasks: str, some: bool = False) -> Table:
    pattern = rf"{_TASKS}/{tasks}/task\.json$"
    return Table(pattern, some_rows_of_task if some else rows_of_task, _COLUMNS)


TABLES: dict[str, Table] = {
    "multiemo.parquet": _table("multiemo/all_sentence_en"),
    "vitaminc.parquet": _table("vitaminc_fact_verification"),
    "disfl_qa.parquet": _table("disfl_qa"),
    "qa_wikidata.parquet": _table("qa_wikidata"),
    "topical_chat.parquet": _table("topical_chat"),
    "xsum.parquet": _table("gem/xsum[^/]*"),
    "wikilingua.parquet": _table("gem/wikilingua_en[^/]*"),
    "natural_instructions.parquet": _table("natural_instructions/[^/]+", some=True),
}
