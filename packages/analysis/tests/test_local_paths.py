"""Absolute paths inside texts are cut to their names; all other text is kept."""

from __future__ import annotations

import pytest
from bitrank_analysis.local_paths import without_paths


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read /home/alice/clients/acme/reviews.csv: row 3", "cannot read …/reviews.csv: row 3"),
        ("No such file: '/home/alice/my clients/x y.csv'; give", "No such file: '…/x y.csv'; give"),
        ("read /home/alice/big clients (old)/x.csv or docs/y", "read …/x.csv or docs/y"),
        ("copy /home/a/b to /home/c/d", "copy …/b to …/d"),
        ("~/data/x.csv and ~bob/y.csv", "…/x.csv and …/y.csv"),
        (r"open C:\Users\alice\x.csv: no", "open …/x.csv: no"),
        (r"'C:\\Users\\alice\\x y.csv'", "'…/x y.csv'"),
        (r"\\server\alice\x.csv is", "…/x.csv is"),
        ("file:///home/alice/runs/artifacts", "file:…/artifacts"),
        ("sqlite:////home/alice/runs/mlflow.db", "sqlite:…/mlflow.db"),
        ("--out=/home/alice/x (/home/alice/)", "--out=…/x (…/)"),
    ],
)
def test_a_path_keeps_its_name_alone(text: str, shown: str) -> None:
    assert without_paths(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "see https://h/a/b and s3://b/c",
        "</script> a/b 1/2 tokens/s ~1/2 and/or, / x",
        "…/reviews.csv: row 3",
        "nf4-dq@bitrank, int8@bitsandbytes",
    ],
)
def test_text_without_a_path_is_kept(text: str) -> None:
    assert without_paths(text) == text
