"""Tables of arms on the pages of docs/results state the figures of the CSV files beside them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pandas as pd
import pytest

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
# Page, CSV file of each of its tables of arms in order, and what the page leaves out of an arm's name.
TABLES = (
    ("allocators.md", 0, "allocators/wiki_articles.csv", "-3.5bits"),
    ("allocators.md", 1, "allocators/wiki_articles.csv", "-4.25bits"),
    ("allocators.md", 2, "allocators/wiki_articles.csv", "-B-Q4"),
    ("allocators.md", 3, "allocators/gptq/wiki_articles.csv", ""),
    ("allocators.md", 4, "allocators/lowest-rank/wiki_articles.csv", ""),
    ("allocators.md", 5, "allocators/sentences/movie_sentences.csv", ""),
    ("systems.md", 0, "systems/movie_sentences.csv", "-B-Q4"),
    ("systems.md", 1, "systems/wiki_articles.csv", "-B-Q4"),
    ("systems.md", 2, "systems/wiki_articles-3.5bits.csv", "-3.5bits"),
    ("systems.md", 3, "systems/gptq/wiki_articles.csv", "-3.5bits"),
    ("systems.md", 4, "systems/movie_sentences-3.5bits.csv", "-3.5bits"),
    ("systems.md", 5, "systems/movie_sentences.csv", "-3.5bits"),
)


@pytest.mark.parametrize(("page", "place", "csv", "ending"), TABLES)
def test_a_table_of_arms_has_the_figures_of_its_csv_file(
    page: str, place: int, csv: str, ending: str
) -> None:
    every = pd.read_csv(RESULTS / csv)
    # An arm without a budget is compared with the reference of each budget.
    arms = every[every["baseline"].isna() | every["baseline"].str.endswith(ending)].set_index("config")
    rows = tables_of_arms((RESULTS / page).read_text(encoding="utf-8"))[place]
    accuracy = arms["metric"].dropna().iloc[0] == "acc"
    for row in rows:
        name = row["arm"].strip("`")
        arm = arms.loc[name if name in arms.index else name + ending]
        for column, key in (("quality", "quality"), ("accuracy", "quality"), ("untrained", "zero")):
            if column in row:
                scale = 100 if accuracy and number(row[column]) > 1 else 1
                assert number(row[column]) == pytest.approx(scale * arm[key], abs=half_unit(row[column])), (
                    name
                )
        if "seeds" in row:
            assert int(row["seeds"]) == arm["seeds"], name
        stated = row.get("difference", row.get("difference in points", "–"))
        if "[" in stated:
            found = [change(arm[key], accuracy) for key in ("difference", "low", "high")]
            assert numbers(stated) == pytest.approx(found, abs=0.0501), name


def tables_of_arms(text: str) -> list[list[dict[str, str]]]:
    """Rows, by column name, of the tables with one quality for each arm."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    split = [[cells(line) for line in block.splitlines()] for block in blocks]
    return [
        [dict(zip(head, row, strict=True)) for row in rows]
        for head, _, *rows in split
        if head[0] == "arm" and {"quality", "accuracy"} & set(head)
    ]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def numbers(text: str) -> list[float]:
    """The first three numbers of a cell such as "+0.6 % [−1.8, +3.0]"."""
    return [number(found) for found in re.findall(r"[−+]?\d+(?:\.\d+)?", text)[:3]]


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


def half_unit(text: str) -> float:
    """Half of the last digit of a number, and a little for the rounding of binary fractions."""
    return 0.501 * 10.0 ** -len(text.partition(".")[2])


def change(value: float, accuracy: bool) -> float:
    """A difference in points of accuracy, or in percent of perplexity from one of logarithms."""
    return 100 * value if accuracy else 100 * math.expm1(value)
