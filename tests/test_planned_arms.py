"""Planned arms: planned once before the run, in another process, in the bytes of the budget, killed and
resumed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from bitrank.process.events import read_events
from bitrank.process.run_folder import REQUESTED_PLAN
from guide_blocks import SourceCopy
from study_tools import SMOKE, bitrank, numbers, run_processes, start, store_runs

CONFIGS = "orchestrator/src/bitrank/spec/configs.py"
ARMS = """    "Plan-12": PlannedArm("exact", "12bits", "a plan in 12 bits", ranks=(2, 4)),
    "Plan-0": PlannedArm("exact", "100B", "a plan that no budget of 100 bytes allows"),
"""
MIB = 2**20


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder and the end of a study with two arms that were added from outside, two runs at a time."""
    copy = SourceCopy(tmp_path_factory.mktemp("outside"))
    path = copy.folder / CONFIGS
    head = "CONFIGS: dict[str, Arm] = {\n"
    path.write_text(path.read_text().replace(head, head + ARMS))
    chosen = ("--configs", "Plan-12,Plan-0,B-Q4", "--tasks", "toy_sentences", "--seeds", "0,1", "--jobs", "2")
    done = subprocess.run(
        ["bitrank", *SMOKE, *chosen],
        cwd=copy.work,
        env=copy.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    return copy.work, done


def runs_of(cwd: Path, config: str) -> list[dict[str, Any]]:
    return [run for run in store_runs(cwd) if run["tags"]["config"] == config]


def figures(run: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, step, value in run["points"] if step == 0}


def artifact(cwd: Path, run: dict[str, Any], name: str) -> Any:
    path = cwd / "runs/artifacts/bitrank-smoke" / run["id"] / "artifacts" / name
    return json.loads(path.read_text())


def test_arm_from_outside_is_planned_once_for_all_seeds(outside) -> None:
    cwd, done = outside
    first, second = runs_of(cwd, "Plan-12")
    assert [first["status"], second["status"]] == ["FINISHED"] * 2, done.stdout + done.stderr
    sources = sorted(run["tags"]["plan_source"].partition(", ")[2] for run in (first, second))
    assert sources[0].startswith("from the cache") and sources[1] == "made before this run"
    plans = [artifact(cwd, run, "plan.json") for run in (first, second)]
    assert all(plans[0][key] == plans[1][key] for key in ("precision", "ranks", "bytes", "planning_seconds"))
    assert set(plans[0]["ranks"].values()) <= {0, 2, 4}
    assert {run["tags"]["family"] for run in (first, second)} == {"planned"}


def test_planning_seconds_and_memory_are_recorded(outside) -> None:
    cwd, _ = outside
    for run in runs_of(cwd, "Plan-12"):
        plan, found = artifact(cwd, run, "plan.json"), figures(run)
        assert found["time/plan_s"] == pytest.approx(sum(plan["planning_seconds"].values()))
        assert found["mem/plan_mib"] == plan["planning_peak_mib"] > 0
        assert plan["budget"] >= plan["bytes"] and plan["predicted_added_loss"] >= 0
    header, *lines = (cwd / "results/experiment_summary.csv").read_text().splitlines()
    by_config = {
        line.split(",")[0]: dict(zip(header.split(","), line.split(","), strict=True)) for line in lines
    }
    assert float(by_config["Plan-12"]["plan_s"]) > 0 and by_config["B-Q4"]["plan_s"] == ""


def test_infeasible_plan_fails_its_run_and_no_other(outside) -> None:
    cwd, done = outside
    assert done.returncode == 2, done.stdout + done.stderr
    for run in runs_of(cwd, "Plan-0"):
        assert run["status"] == "FAILED" and "100 bytes" in run["tags"]["failure"]
    assert [run["status"] for run in runs_of(cwd, "B-Q4")] == ["FINISHED"] * 2
    assert "4 of 6 runs are complete" in done.stdout


def test_planning_takes_place_in_another_process_than_the_run(outside) -> None:
    """Events of the run's process have its memory. It begins with the memory of the imports alone, and events
    of planning have none, so the peak of the run, which is the largest over all events, excludes planning.
    """
    cwd, _ = outside
    run = runs_of(cwd, "Plan-12")[0]
    events = read_events(cwd / "runs/work" / run["tags"]["spec_id"] / "events.jsonl")
    planning = [event for event in events if event.get("phase", "").startswith("plan")]
    assert planning and not any("live" in event for event in planning)
    peaks = [event["live"]["peak_mib"] for event in events if "live" in event]
    assert peaks[0] == pytest.approx(figures(run)["mem/import_mib"], rel=0.01)
    assert figures(run)["mem/peak_mib"] <= max(peaks)


def planning_processes(pid: int) -> list[psutil.Process]:
    return [c for c in psutil.Process(pid).children(recursive=True) if "bitrank.planning" in c.cmdline()]


def wait_for_phase(cwd: Path, start_of_phase: str) -> Path:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for path in (cwd / "runs" / "work").glob("*/events.jsonl"):
            if any(event.get("phase", "").startswith(start_of_phase) for event in read_events(path)):
                return path.parent
        time.sleep(0.02)
    raise AssertionError(f"no run reached {start_of_phase}")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_during_planning_and_during_training_it_ends_with_the_same_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path / "cache"))
    arguments = (*SMOKE, "--configs", "Plan-Q4", "--tasks", "toy_articles")
    process = start(*arguments, cwd=tmp_path)
    folder = wait_for_phase(tmp_path, "planning: measuring")
    (planning,) = planning_processes(process.pid)
    assert not list(run_processes(process.pid)), "the run must not have started before its plan exists"
    process.send_signal(number)
    process.wait(timeout=60)
    planning.wait(timeout=60)
    assert not (folder / REQUESTED_PLAN).exists()
    (cut,) = store_runs(tmp_path)
    assert cut["status"] == ("RUNNING" if number == signal.SIGKILL else "KILLED")

    process = start(*arguments, cwd=tmp_path)
    wait_for_phase(tmp_path, "training")
    plan = (folder / REQUESTED_PLAN).read_bytes()
    process.send_signal(number)
    process.wait(timeout=60)
    shutil.rmtree(tmp_path / "cache" / "plans")  # the run continues with the plan in its folder
    done = bitrank(*arguments, cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / REQUESTED_PLAN).read_bytes() == plan and not (tmp_path / "cache" / "plans").exists()
    (run,) = store_runs(tmp_path)
    assert (run["id"], run["status"]) == (cut["id"], "FINISHED") and numbers(run)


def test_plan_fills_the_bytes_of_the_config_that_is_its_budget(tmp_path: Path) -> None:
    done = bitrank(*SMOKE, "--configs", "B-Q4,Plan-Q4", "--tasks", "toy_articles", cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    stored = {
        run["tags"]["config"]: MIB * (figures(run)["model/mib"] + figures(run)["lora/mib"])
        for run in store_runs(tmp_path)
    }
    assert 0.98 * stored["B-Q4"] <= stored["Plan-Q4"] <= stored["B-Q4"]
    (planned,) = runs_of(tmp_path, "Plan-Q4")
    assert artifact(tmp_path, planned, "plan.json")["bytes"] == pytest.approx(stored["Plan-Q4"], abs=0.5)
    assert (tmp_path / "runs/artifacts/bitrank-smoke" / planned["id"] / "artifacts/maps/bits.png").exists()
