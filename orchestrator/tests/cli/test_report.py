"""Names of the analysis package in the options and help of ``bitrank report``, ``paper`` and ``sql``."""

from __future__ import annotations

import re
from pathlib import Path

from bitrank.cli.report import SQL_FORMATS, SQL_VIEWS
from bitrank_analysis import artifacts, store
from bitrank_analysis.query import FORMATS


def test_formats_of_sql_are_those_of_the_analysis_package() -> None:
    assert list(FORMATS) == list(SQL_FORMATS)


def test_views_of_sql_are_those_that_the_analysis_package_creates() -> None:
    created = set[str]()
    for module in (store, artifacts):
        source = Path(module.__file__).read_text(encoding="utf-8")
        created |= set(re.findall(r"CREATE VIEW (?!raw\.)(\w+)", source))
    assert set(SQL_VIEWS) == created
