"""An export accepts only unchanged adapters and plans; a truncated failure file does not stop the matrix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bitrank.errors import UserError
from bitrank.execution.attempt import _read
from bitrank.export.finished_run import find_run
from bitrank.process.run_folder import DIGESTS, seal
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.spec.run_spec import write_spec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_spec(make_spec(PROFILES["smoke"], "B-Q4", "toy_sentences"), tmp_path / "spec.json")
    (tmp_path / "plan.json").write_text(json.dumps({"precision": {"a": "nf4"}, "ranks": {"a": 8}}))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"0123456789")
    (tmp_path / "zero_shot.json").write_text("{}")
    seal(tmp_path, {"eval/acc": 0.5})
    return tmp_path


def test_an_intact_run_is_found_without_the_files_that_an_export_ignores(folder: Path) -> None:
    (folder / "zero_shot.json").unlink()  # the store's artifacts lack it
    run = find_run(folder)
    assert (run.precision, run.ranks, run.adapter) == ({"a": "nf4"}, {"a": 8}, folder / "adapter")
    assert find_run(folder / "adapter") == run


@pytest.mark.parametrize("name", ["plan.json", "spec.json", "adapter/adapter_model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"changed"])
def test_the_error_names_a_changed_or_truncated_file(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} has other content than was written"):
        find_run(folder)
    (folder / name).unlink()
    if name.startswith("adapter"):
        with pytest.raises(UserError, match=f"{name} is missing"):
            find_run(folder)


def test_a_run_in_a_stand_in_is_refused_by_name(folder: Path) -> None:
    precision = {"a": "int4-g64", "b": "noise16-int4-g64"}
    (folder / "plan.json").write_text(json.dumps({"precision": precision, "ranks": {"a": 8}}))
    seal(folder, {"eval/acc": 0.5})
    with pytest.raises(UserError, match=r"trained with noise16-int4-g64, .* export a run in int4-g64"):
        find_run(folder)


def test_truncated_digests_are_rejected_and_missing_digests_accepted(folder: Path) -> None:
    (folder / DIGESTS).write_text('{"plan.json": ')
    with pytest.raises(UserError, match=r"digests\.json is missing or damaged"):
        find_run(folder)
    (folder / DIGESTS).unlink()
    assert find_run(folder).ranks == {"a": 8}
    (folder / "plan.json").write_text('{"precision": ')
    with pytest.raises(UserError, match=r"plan\.json or spec\.json is damaged"):
        find_run(folder)


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b'"text"', b"7", b'{"message": "cut', b"\xff\xfe\x00"])
def test_a_damaged_failure_file_is_ignored(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "failure.json").write_bytes(content)
    assert _read(tmp_path / "failure.json") == {}


def test_an_unfinished_run_is_named_as_such(tmp_path: Path) -> None:
    write_spec(make_spec(PROFILES["smoke"], "B-Q4", "toy_sentences"), tmp_path / "spec.json")
    with pytest.raises(UserError, match="is not finished: it has no adapter yet; repeat the command"):
        find_run(tmp_path)
