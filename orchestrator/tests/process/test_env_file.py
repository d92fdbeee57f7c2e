"""A file .env gives tokens that the environment does not have, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bitrank.errors import UserError
from bitrank.process.env_file import NAMES, read_env_file


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, "BITRANK_CACHE_TEST"):
        monkeypatch.setenv(name, "")  # restored after the test, whatever it sets
        monkeypatch.delenv(name)


def test_tokens_are_read_and_quotes_and_comments_are_not_part_of_them(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("# keys\nexport HF_TOKEN='hf_$1'  # mine\nWANDB_API_KEY=abc\n")
    read_env_file(tmp_path)
    assert (os.environ["HF_TOKEN"], os.environ["WANDB_API_KEY"]) == ("hf_$1", "abc")


def test_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "shell")
    (tmp_path / ".env").write_text("HF_TOKEN=file\n")
    read_env_file(tmp_path)
    assert os.environ["HF_TOKEN"] == "shell"


def test_other_variables_and_a_missing_file_change_nothing(tmp_path: Path) -> None:
    before = dict(os.environ)
    read_env_file(tmp_path)
    (tmp_path / ".env").write_text("BITRANK_CACHE_TEST=/elsewhere\nPATH=/elsewhere\nWANDB_MODE=\n")
    read_env_file(tmp_path)
    assert dict(os.environ) == before


def test_a_file_that_is_no_text_is_refused_without_its_content(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"HF_TOKEN=secret\xff\xfe\n")
    with pytest.raises(UserError, match=r"cannot read .*env") as refused:
        read_env_file(tmp_path)
    assert "secret" not in str(refused.value)


def test_the_command_line_reads_it_in_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfe")
    done = subprocess.run(
        [sys.executable, "-m", "bitrank", "list", "--arms"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and "cannot read" in done.stderr and "Traceback" not in done.stderr
