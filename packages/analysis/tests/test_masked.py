"""Secrets inside URIs are in no message."""

from __future__ import annotations

import pytest
from bitrank_analysis import AnalysisError, open_store
from bitrank_analysis.errors import masked, masked_uri


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:s3cr't@host:5000/db", "postgresql://***@host:5000/db"),
        ("postgresql://me:a@b/c@host/db", "postgresql://***@host/db"),
        ("https://TOKEN@host/api", "https://***@host/api"),
        ("see 'https://h/?api_key=abc&x=1'; give", "see 'https://h/?api_key=***&x=1'; give"),
        ("('https://h/?token=abc',) is", "('https://h/?token=***',) is"),
        ("postgresql://h/db?user=me&password=s'x", "postgresql://h/db?user=me&password=***"),
        ("http://127.0.0.1:5000/#/experiments/1", "http://127.0.0.1:5000/#/experiments/1"),
        ("https://host/x@y", "https://host/x@y"),
        ("write to me: a@b", "write to me: a@b"),
    ],
)
def test_secrets_of_a_uri_are_masked_and_all_else_kept(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_spaces_in_the_uri_of_a_store_are_part_of_its_secret() -> None:
    uri = "postgresql://me:a s3cret@host:port/db"
    assert masked_uri(uri) == "postgresql://***@host:port/db"
    with pytest.raises(AnalysisError, match=r"cannot parse the store URI 'postgresql://\*\*\*@host:port/db'"):
        open_store(uri)
