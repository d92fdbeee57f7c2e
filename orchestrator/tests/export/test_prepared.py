"""An export is written as a whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from bitrank.cli.main import main
from bitrank.errors import UserError
from bitrank.export.audit import Audit, MatrixAudit
from bitrank.export.prepared import Prepared, check_creatable, check_loss, write_export

Usage = namedtuple("Usage", "total used free")


def audit(added: float = 0.0) -> Audit:
    matrices = {
        "a": MatrixAudit("nf4", "Q4_0", 4, 0.1, 0.2, kept=False),
        "b": MatrixAudit("nf4", "Q4_0", 4, 0.1, 0.2, kept=False),
        "c": MatrixAudit("int8", "Q8_0", 4, 0.1, 0.2),
    }
    return Audit("gguf", {"loss": 1.0}, {"loss": 1.0 + added}, matrices, 100, 120)


def write_two_files(folder: Path) -> None:
    (folder / "weights").write_bytes(b"1234")
    (folder / "more").mkdir()
    (folder / "more/tokenizer").write_text("{}")


def test_files_and_audit_are_written_under_the_name_of_the_folder(tmp_path: Path) -> None:
    files = write_export(Prepared(audit(0.01), 4, write_two_files, ["a note"]), tmp_path / "new/out")
    assert files == {"weights": 4, "more/tokenizer": 2}
    written = json.loads((tmp_path / "new/out/audit.json").read_text())
    assert (written["files"], written["notes"]) == (files, ["a note"])
    assert written["added_loss"] == pytest.approx(0.01)
    assert written["replaced"] == [{"planned": "nf4", "stored": "Q4_0", "matrices": 2}]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_nothing_is_left_after_an_error(tmp_path: Path, error: BaseException) -> None:
    def fail(folder: Path) -> None:
        (folder / "weights").write_bytes(b"1234")
        raise error

    with pytest.raises(type(error)):
        write_export(Prepared(audit(), 4, fail), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_a_killed_export_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".out.unfinished").mkdir()
    (tmp_path / ".out.unfinished/old").write_text("")
    write_export(Prepared(audit(), 4, write_two_files), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["audit.json", "more", "weights"]


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(100, 0, 50 * 2**20))
    with pytest.raises(UserError, match="has 50 MiB free, but the export takes about 101 MiB: nothing was"):
        write_export(Prepared(audit(), 100 * 2**20, write_two_files), tmp_path / "new/out")
    assert list(tmp_path.iterdir()) == []
    write_export(Prepared(audit(), 20 * 2**20, write_two_files), tmp_path / "new/out")


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        write_export(Prepared(audit(), 4, write_two_files), tmp_path)


def test_a_place_without_room_for_a_folder_is_refused_before_the_run_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file/out", tmp_path / "file/more/out"):
        assert main(["export", "no-run", "--out", str(out)]) == 2
        assert f"{tmp_path / 'file'} is no folder, so --out cannot be" in capsys.readouterr().err
    monkeypatch.setattr(os, "access", lambda place, _mode: place != tmp_path)
    assert main(["export", "no-run", "--out", str(tmp_path / "new/out")]) == 2
    assert f"{tmp_path} is not writable, so --out cannot be" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="link exists already"):
        check_creatable(tmp_path / "link")


@pytest.mark.parametrize("added", [0.06, float("nan"), float("inf")])
def test_too_much_added_loss_is_refused(added: float) -> None:
    check_loss(audit(0.04), 0.05, "Do this")
    with pytest.raises(
        UserError, match=r"nats to .* more than --max-loss 0\.05: nothing was written\. Do this"
    ):
        check_loss(audit(added), 0.05, "Do this")
