"""Full disks (exit code 1) and read-only ones (2) give a clear message; a read-only store is readable."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bitrank.errors import UserError, disk_problem, is_full_disk
from study_tools import SMOKE, bitrank, numbers, start, store_runs, wait_for

ONE = (*SMOKE, "--tasks", "toy_articles", "--configs", "B-FP")
TWO = (*SMOKE, "--tasks", "toy_articles", "--configs", "B-FP,B-Q4", "--set", "checkpoint_every=4")
Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mount with the options of ``mount``; skips without permission."""
    mounted: list[Path] = []

    def make(name: str, *options: str) -> Path:
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        done = subprocess.run(["mount", *options, str(place)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("mounting is not allowed here")
        mounted.append(place)
        return place

    if shutil.which("mount") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("needs root to mount")
    yield make
    for place in reversed(mounted):
        subprocess.run(["umount", "-l", str(place)], check=True)


def _refused(done: subprocess.CompletedProcess[str], *expected: str, code: int = 2) -> None:
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    assert "Traceback" not in output
    assert all(text in output for text in expected), output


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("once")
    done = bitrank(*ONE, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd


@pytest.mark.parametrize("with_wal", [True, False])
def test_read_only_store_can_be_listed_and_queried_but_not_written(
    once: Path, with_wal: bool, mount: Mount, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(once / "runs", source)
    writer = sqlite3.connect(source / "mlflow.db")
    writer.execute("UPDATE tags SET value = 'changed' WHERE key = 'family'")
    writer.commit()
    if not with_wal:
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    place = mount("read-only", "--bind", str(source))
    subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)
    if not with_wal:
        writer.close()
    listed = bitrank("list", *ONE[1:], "--store", str(place), "--json", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert json.loads(listed.stdout)[0]["state"] == "done"
    sql = 'SELECT "t.family" AS family FROM wide'
    done = bitrank("sql", sql, "--store", str(place), "--format", "csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "family\nchanged\n"
    report = bitrank("report", "--profile", "smoke", "--store", str(place), cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    _refused(bitrank(*ONE, "--store", str(place), cwd=tmp_path), "cannot write the store", "read-only")
    writer.close()


@pytest.mark.parametrize("size", ["16k", "200k", "900k"])
def test_full_disk_of_the_store_is_reported(size: str, mount: Mount, tmp_path: Path) -> None:
    place = mount("full", "-t", "tmpfs", "-o", f"size={size}", "none")
    _refused(bitrank(*ONE, "--store", str(place / "runs"), cwd=tmp_path), "full", "--store", code=1)
    subprocess.run(["mount", "-o", "remount,size=60m", str(place)], check=True)
    again = bitrank(*ONE, "--store", str(place / "runs"), cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, int, float]]]:
    """Run name → numbers of an uninterrupted run of ``TWO``."""
    cwd = tmp_path_factory.mktemp("straight")
    done = bitrank(*TWO, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return {run["name"]: numbers(run) for run in store_runs(cwd)}


def _spec_ids(cwd: Path) -> list[str]:
    listed = bitrank("list", *TWO[1:], "--json", cwd=cwd)
    return [row["spec_id"] for row in json.loads(listed.stdout)]


# The sizes end the run inside the first best weights, the first checkpoint and the second one.
@pytest.mark.parametrize("size", ["40k", "300k", "700k"])
def test_a_disk_that_fills_while_a_run_trains_fails_that_run_only_and_it_resumes(
    size: str, mount: Mount, tmp_path: Path, straight: dict[str, list[tuple[str, int, float]]]
) -> None:
    first = _spec_ids(tmp_path)[0]
    folder = Path("runs", "work", first)
    (tmp_path / folder).mkdir(parents=True)
    place = mount(str(folder), "-t", "tmpfs", "-o", f"size={size}", "none")
    done = bitrank(*TWO, "--jobs", "1", cwd=tmp_path)
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert "the disk is full; once that is solved, the same command continues this run" in output
    assert "Traceback" not in output
    runs = {run["name"]: run for run in store_runs(tmp_path)}
    failed, other = (run for _, run in sorted(runs.items()))
    assert [failed["status"], other["status"]] == ["FAILED", "FINISHED"]
    assert "the disk is full" in failed["tags"]["failure"]

    subprocess.run(["mount", "-o", "remount,size=60m", str(place)], check=True)
    again = bitrank(*TWO, "--jobs", "1", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert ('"resumed"' in (place / "events.jsonl").read_text()) == (size == "700k")
    assert {run["name"]: numbers(run) for run in store_runs(tmp_path)} == straight


def test_a_whole_disk_that_fills_while_runs_train_loses_no_number(
    mount: Mount, tmp_path: Path, straight: dict[str, list[tuple[str, int, float]]]
) -> None:
    place = mount("runs", "-t", "tmpfs", "-o", "size=4m", "none")
    process = start(*TWO, "--jobs", "1", cwd=tmp_path)
    wait_for(tmp_path, "checkpoint")
    with pytest.raises(OSError, match="No space left"), (place / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    assert process.wait(timeout=120) == 1
    stopped = {run["name"]: run["status"] for run in store_runs(tmp_path)}
    assert "FINISHED" not in stopped.values()

    subprocess.run(["mount", "-o", "remount,size=60m", str(place)], check=True)
    again = bitrank(*TWO, "--jobs", "1", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {run["name"]: numbers(run) for run in store_runs(tmp_path)} == straight


def test_a_file_size_limit_is_named(tmp_path: Path) -> None:
    limit = "import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    write = (
        "from bitrank_trainer.checkpoints import save_weights; from torch import nn; from pathlib import Path"
    )
    call = f"save_weights(nn.Linear(200, 200), Path({str(tmp_path / 'best.safetensors')!r}))"
    show = "    from bitrank.errors import disk_problem; print(disk_problem(error))"
    code = f"{limit}\n{write}\ntry:\n    {call}\nexcept Exception as error:\n{show}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "larger than the limit" in done.stdout, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_unwritable_results_folder_is_rejected_before_training(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    _refused(bitrank(*ONE, cwd=tmp_path), "cannot write results to", "--results")
    assert not (tmp_path / "runs").exists()


def test_results_that_fail_later_do_not_stop_the_runs(
    once: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from bitrank.cli.main import main

    monkeypatch.chdir(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bitrank.tracking.results_files._csv", full)
    assert main([*SMOKE, "--configs", "B-FP,B-Q4", "--tasks", "toy_articles", "--jobs", "1"]) == 1
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as database:
        assert database.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)] * 2


def test_disk_error_is_found_in_the_exception_chain() -> None:
    try:
        try:
            raise OSError(28, "No space left on device", "/data/x")
        except OSError as inner:
            raise RuntimeError("an error of a library") from inner
    except RuntimeError as error:
        assert disk_problem(error) == "the disk is full (/data/x)"
        assert is_full_disk(error)
    assert disk_problem(sqlite3.OperationalError("database or disk is full")) == "the disk is full"
    assert disk_problem(ValueError("database or disk is full")) is None


def test_user_error_about_a_full_disk_is_a_failure_and_about_a_read_only_one_is_not() -> None:
    """The first can be repeated as it is once there is space; the second needs another folder."""
    for number, is_full in ((28, True), (30, False), (13, False)):
        try:
            try:
                raise OSError(number, "cannot write", "/data/x")
            except OSError as inner:
                raise UserError("cannot write results") from inner
        except UserError as error:
            assert is_full_disk(error) == is_full
