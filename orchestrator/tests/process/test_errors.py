"""Passwords, tokens and keys inside URIs are in no message."""

from __future__ import annotations

from pathlib import Path

import pytest
from bitrank.cli.main import main
from bitrank.errors import masked, masked_uri
from bitrank.tracking.store import Store

SECRET = "pl4nted"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"http://me:{SECRET}@host:5000/x", "http://***@host:5000/x"),
        (f"postgresql://me:{SECRET}@host/db", "postgresql://***@host/db"),
        (f"postgresql+psycopg2://me:a@{SECRET}/b@host/db", "postgresql+psycopg2://***@host/db"),
        (f"https://:{SECRET}@host", "https://***@host"),
        (
            f"postgresql://host/db?user=me&password={SECRET}&x=1",
            "postgresql://host/db?user=me&password=***&x=1",
        ),
        (
            f"cannot use 'http://me:{SECRET}@host'; give another",
            "cannot use 'http://***@host'; give another",
        ),
        ("http://127.0.0.1:5000/#/experiments/1", "http://127.0.0.1:5000/#/experiments/1"),
        (f"http://me:{SECRET}'x@host", "http://***@host"),
        (f"https://{SECRET}@host/api", "https://***@host/api"),
        (f"see 'https://h/?api_key={SECRET}&x=1'; give", "see 'https://h/?api_key=***&x=1'; give"),
        (f"('https://h/?token={SECRET}',) is", "('https://h/?token=***',) is"),
        (f"postgresql://host/db?password={SECRET}'x", "postgresql://host/db?password=***"),
        ("https://host/x@y", "https://host/x@y"),
        ("sqlite:////home/a@b/x:1@y/mlflow.db", "sqlite:////home/a@b/x:1@y/mlflow.db"),
        ("write to me: a@b", "write to me: a@b"),
    ],
)
def test_secrets_of_a_uri_are_masked_and_all_else_kept(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_spaces_in_one_uri_are_part_of_its_secret() -> None:
    uri = f"http://me:a {SECRET}@host"
    assert masked_uri(uri) == "http://***@host"


def test_a_store_is_opened_with_its_password_and_shown_without() -> None:
    store = Store.parse(f"http://me:{SECRET}@host:5000")
    assert (store.uri, store.shown) == (f"http://me:{SECRET}@host:5000", "http://***@host:5000")


@pytest.mark.parametrize(
    "words",
    [
        ("matrix", "--profile", "smoke", "--store", f"http://me:{SECRET}@127.0.0.1:9"),
        ("matrix", "--profile", "smoke", "--store", f"postgresql://me:{SECRET}@127.0.0.1:9/x"),
        ("list", "--profile", "smoke", "--store", f"http://me:{SECRET}@127.0.0.1:9"),
        ("list", "--profile", "smoke", "--store", f"http://me:a {SECRET}@127.0.0.1:9"),
        ("list", "--profile", "smoke", "--store", f"http://{SECRET}@127.0.0.1:9"),
        ("list", "--profile", "smoke", "--store", f"http://127.0.0.1:9/?token={SECRET}"),
        ("list", "--profile", "smoke", "--store", f"mysql://me:{SECRET}@127.0.0.1:9/x"),
        ("ui", "--store", f"http://me:{SECRET}@127.0.0.1:9"),
        ("report", "--store", f"mysql://me:{SECRET}@127.0.0.1:9/x"),
        ("sql", "SELECT 1", "--store", f"postgresql://me:{SECRET}@127.0.0.1:port/x"),
        ("sql", "SELECT 1", "--store", f"postgresql://me:{SECRET}@127.0.0.1:9/x"),
        ("paper", "--store", f"http://me:{SECRET}@127.0.0.1:9"),
    ],
)
def test_no_command_prints_the_password_of_its_store(
    words: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main(words) == 2
    captured = capsys.readouterr()
    assert SECRET not in captured.out + captured.err
    assert "Traceback" not in captured.err
