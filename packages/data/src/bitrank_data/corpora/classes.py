"""Classification: sentiment of rated snippets and of review sentences, and claims against passages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bitrank_data.assets import asset_dir
from bitrank_data.corpora.groups import connected, split_groups
from bitrank_data.examples import DataReport, Example, PairExample, Texts
from bitrank_data.kinds import CLASSIFICATION
from bitrank_data.splitting import text_key
from bitrank_data.tables import Row, read_table

_NEUTRAL = 0.5
SENTIMENTS = ("negative", "positive")
EMOTIONS = ("negative", "neutral", "ambivalent", "positive")
VERDICTS = ("True", "False", "Neither")
# Tokens that the source writes for signs.
_SIGNS = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-COLON-": ":", "\ufffd": " "}


def rated_snippets(name: str, test: int, validation: int) -> Texts:
    """Snippets of ``name`` with the sign of their mean rating as class; snippets of one document together."""
    examples = rated_examples(asset_dir("rated-snippets") / f"{name}.tsv", name)
    groups = connected(examples, lambda example: [example.id.rpartition("_")[0] or example.id])
    return Texts(CLASSIFICATION, split_groups(groups, _identity, test, validation), SENTIMENTS)


def rated_examples(path: Path, prefix: str) -> list[Example]:
    """Texts whose mean rating in −4…4 is at least 0.5 from neutral; the class is the sign.

    Rows are ``id``, rating and text, separated by tabs; the id ``3_12`` is snippet 12 of document 3. The
    first of several equal texts is kept.
    """
    examples: dict[str, Example] = {}
    for row in path.read_text(encoding="utf-8").splitlines():
        number, rating, text = row.split("\t", 2)
        if abs(float(rating)) >= _NEUTRAL:
            examples.setdefault(text_key(text), Example(f"{prefix}-{number}", text, int(float(rating) > 0)))
    return list(examples.values())


def multiemo() -> Texts:
    """57 thousand sentences of consumer reviews, 10,000 for test and 2,000 for validation, in four classes.

    The archive does not name the review of a sentence, so sentences of one review may be in several splits.
    """
    rows = read_table(asset_dir("bigbench") / "multiemo.parquet")
    examples, report = labelled(rows, "multiemo", EMOTIONS)
    groups = [[example] for example in examples]
    return Texts(CLASSIFICATION, split_groups(groups, _identity, 10_000, 2_000), EMOTIONS, report)


def labelled(rows: Sequence[Row], prefix: str, classes: Sequence[str]) -> tuple[list[Example], DataReport]:
    """One example per different text; texts with several labels are left out."""
    by_text: dict[str, list[Row]] = {}
    for row in rows:
        by_text.setdefault(text_key(row["input"]), []).append(row)
    examples, conflicting = [], 0
    for same in by_text.values():
        row, labels = same[0], {tuple(row["targets"]) for row in same}
        if len(labels) > 1:
            conflicting += 1
            continue
        examples.append(Example(f"{prefix}-{row['number']}", row["input"], classes.index(row["targets"][0])))
    counts = {"repeated_rows": len(rows) - len(by_text), "conflicting_texts": conflicting}
    return examples, DataReport(counts, _notes(counts))


def _notes(counts: dict[str, int]) -> tuple[str, ...]:
    repeated, conflicting = counts["repeated_rows"], counts["conflicting_texts"]
    notes = []
    if repeated:
        notes.append(f"{repeated} rows repeat the text of another row and were left out")
    if conflicting:
        notes.append(f"{conflicting} texts have different labels in different rows and were left out")
    return tuple(notes)


def vitaminc() -> Texts:
    """54 thousand claims about Wikipedia passages: true, false, or not decided by the passage.

    At least 10,000 pairs for test and 2,000 for validation; all claims about one page are in one split.
    """
    rows = read_table(asset_dir("bigbench") / "vitaminc.parquet")
    examples, page_of = claims(rows)
    keys = {example.id: [page_of[example.id], text_key(example.text)] for example in examples}
    groups = connected(examples, lambda example: keys[example.id])
    return Texts(CLASSIFICATION, split_groups(groups, _identity, 10_000, 2_000), VERDICTS)


def claims(rows: Sequence[Row]) -> tuple[list[Example], dict[str, str]]:
    """Claim (``text``) and passage (``pair``) of each different row, and the page of each example by id."""
    examples: dict[str, Example] = {}
    pages = {}
    for row in rows:
        passage, _, claim = row["input"].rpartition("\nClaim: ")
        id_ = f"vitaminc-{row['number']}"
        pages[id_] = f"page {passage.partition(': ')[0]}"
        label = VERDICTS.index(row["targets"][0])
        example = PairExample(id_, _with_signs(claim), label, pair=_with_signs(passage))
        examples.setdefault(text_key(row["input"]), example)
    return list(examples.values()), pages


def _with_signs(text: str) -> str:
    for token, sign in _SIGNS.items():
        text = text.replace(token, sign)
    return text


def _identity(example: Example) -> str:
    return f"{example.id}\t{example.text}"
