"""A run in two processes (gloo, CPU) equals the run in one process; one process writes; kills are resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from bitrank.process.events import read_events
from study_tools import SMOKE, bitrank, run_processes, start, store_runs, wait_for

TWO = ("--processes", "2", "--jobs", "1")
RUNS = (
    "B-FP toy_sentences s0",
    "B-FP toy_articles s0",
    "Joint-1 toy_sentences s0",
    "Joint-1 toy_articles s0",
)
ROUNDING = 2e-5  # nats after twenty steps in fp32
ROUNDING_16 = 3e-2  # the same in bf16, whose eighth bit is 0.004


def study(cwd: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    done = bitrank(*SMOKE, *arguments, cwd=cwd, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    return {run["name"]: run for run in store_runs(cwd)}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return {count: tmp_path_factory.mktemp(f"processes-{count}") for count in (1, 2)}


@pytest.fixture(scope="module")
def studies(places: dict[int, Path]) -> dict[int, dict[str, dict[str, Any]]]:
    """LoRA, and NF4 with AdaLoRA, in fp32 on both tasks, in one process and in two."""
    arguments = ("--configs", "B-FP,Joint-1", "--set", "dtype=fp32")
    return {1: study(places[1], *arguments), 2: study(places[2], *arguments, *TWO)}


def points(run: dict[str, Any], key: str) -> dict[int, float]:
    return {step: value for name, step, value in run["points"] if name == key}


def artifacts(cwd: Path, run: dict[str, Any]) -> Path:
    return cwd / "runs/artifacts/bitrank-smoke" / run["id"] / "artifacts"


@pytest.mark.parametrize("name", RUNS)
def test_curves_and_metrics_equal_those_of_one_process(
    studies: dict[int, dict[str, dict[str, Any]]], name: str
) -> None:
    one, two = studies[1][name], studies[2][name]
    curves = {
        key for key, step, _ in one["points"] if step and not key.startswith(("time/", "speed/", "mem/"))
    }
    assert {"train/loss", "train/grad_norm", "train/rank", "val/loss"} <= curves
    for key in curves:
        assert points(two, key) == pytest.approx(points(one, key), abs=ROUNDING, rel=ROUNDING), key
    assert len(points(two, "train/loss")) == 11  # step 1 and every second step up to 20
    for key in (
        "eval/loss",
        "zero/loss",
        "lora/rank",
        "lora/params",
        "model/mib",
        "train/tokens",
        "train/best_step",
    ):
        assert points(two, key) == pytest.approx(points(one, key), abs=ROUNDING), key


@pytest.mark.parametrize("name", RUNS[2:])
def test_same_ranks_are_pruned_as_in_one_process(
    studies: dict[int, dict[str, dict[str, Any]]], places: dict[int, Path], name: str
) -> None:
    ranks = [
        json.loads((artifacts(places[count], studies[count][name]) / "ranks.json").read_text())
        for count in (1, 2)
    ]
    assert ranks[0] == ranks[1]
    assert len(set(ranks[0]["final"].values())) > 1, "nothing was chosen: this proves nothing"
    hooks = [
        artifacts(places[count], studies[count][name]) / "checkpoint/step-00000020/progress.json"
        for count in (1, 2)
    ]
    masks = [json.loads(json.loads(path.read_text())["hook"]) for path in hooks]
    assert masks[0] == masks[1] and any(not all(mask) for mask in masks[0].values())


@pytest.mark.parametrize("name", RUNS)
def test_only_one_process_writes(
    studies: dict[int, dict[str, dict[str, Any]]], places: dict[int, Path], name: str
) -> None:
    run = studies[2][name]
    keys = [(key, step) for key, step, _ in run["points"]]
    assert len(keys) == len(set(keys)) and run["status"] == "FINISHED" and run["params"]["processes"] == "2"
    events = places[2] / "runs/work" / run["tags"]["spec_id"] / "events.jsonl"
    counts = Counter((event["event"], event.get("step"), event.get("phase")) for event in read_events(events))
    assert set(counts.values()) == {1}, "an event was recorded twice"
    assert {
        path.name for path in events.parent.iterdir() if "failure" in path.name or "rank" in path.name
    } == {"ranks.json"}
    left = [
        {path.name for path in artifacts(places[count], studies[count][name]).iterdir()} for count in (1, 2)
    ]
    assert left[0] == left[1]


def test_memory_is_reported_for_the_first_process_and_for_all(
    studies: dict[int, dict[str, dict[str, Any]]],
) -> None:
    for name in RUNS:
        first, all_of_them = (
            points(studies[2][name], key)[0] for key in ("mem/peak_mib", "mem/sum_peak_mib")
        )
        assert 1.5 * first < all_of_them < 2.5 * first
        assert not points(studies[1][name], "mem/sum_peak_mib")


def test_nf4_in_bf16_is_near_one_process(tmp_path: Path) -> None:
    arguments = ("--configs", "B-Q4", "--tasks", "toy_articles", "--set", "dtype=bf16")
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
    (one,), (two,) = (
        study(tmp_path / place, *arguments, *more).values() for place, more in (("one", ()), ("two", TWO))
    )
    assert points(two, "train/loss") == pytest.approx(points(one, "train/loss"), abs=ROUNDING_16)
    assert points(two, "eval/loss") == pytest.approx(points(one, "eval/loss"), abs=ROUNDING_16)


@pytest.mark.parametrize("task", ["toy_articles", pytest.param("toy_sentences", marks=pytest.mark.slow)])
def test_sharded_base_gives_the_numbers_of_an_unsharded_one(tmp_path: Path, task: str) -> None:
    """FSDP, AdaLoRA on a 16-bit base."""
    arguments = ("--configs", "B-Ada", "--tasks", task, "--set", "dtype=bf16")
    for place in ("whole", "sharded"):
        (tmp_path / place).mkdir()
    (whole,), (sharded,) = (
        study(tmp_path / "whole", *arguments).values(),
        study(tmp_path / "sharded", *arguments, *TWO, "--shard").values(),
    )
    for key in ("train/loss", "train/rank", "val/loss", "eval/loss"):
        assert points(sharded, key) == pytest.approx(points(whole, key), abs=ROUNDING_16), key
    assert points(sharded, "model/mib") == points(whole, "model/mib")
    if task == "toy_articles":
        files = [
            artifacts(tmp_path / place, run) / "continuations.json"
            for place, run in (("whole", whole), ("sharded", sharded))
        ]
        assert [row["prompt"] for row in json.loads(files[0].read_text())] == [
            row["prompt"] for row in json.loads(files[1].read_text())
        ]


def test_a_rank_ends_without_finalizing_the_interpreter() -> None:
    """Gloo's threads may outlive the process group; one that needs the GIL then would abort the process."""
    program = """
import atexit
from bitrank.run.__main__ import _end_rank

class Finalized:
    def __del__(self):
        print("interpreter finalized", flush=True)

kept = Finalized()
atexit.register(print, "exit functions ran")
_end_rank(3)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "exit functions ran\n", "")


def test_quantized_base_is_not_sharded(tmp_path: Path) -> None:
    done = bitrank(
        *SMOKE, "--configs", "B-Q4", "--tasks", "toy_articles", *TWO, "--shard", cwd=tmp_path, timeout=1200
    )
    assert (
        done.returncode == 2
        and "only weights that are multiplied as they are stored can be shared out" in done.stdout
    )


def ranks_of(process: Any) -> list[psutil.Process]:
    """Processes of the current run by rank."""
    ranked = {
        int(arguments[4]): child for child, arguments in run_processes(process.pid) if len(arguments) > 4
    }
    return [ranked[rank] for rank in sorted(ranked)]


_OTHERS = [pytest.param(victim, marks=pytest.mark.slow) for victim in ("rank 0", "invocation", "terminate")]


@pytest.mark.parametrize("victim", ["rank 1", *_OTHERS])
def test_killed_process_is_reported_and_the_run_resumes_with_equal_results(
    tmp_path: Path, studies: dict[int, dict[str, dict[str, Any]]], victim: str
) -> None:
    arguments = (*SMOKE, "--configs", "Joint-1", "--tasks", "toy_articles", "--set", "dtype=fp32", *TWO)
    process = start(*arguments, cwd=tmp_path)
    folder = wait_for(tmp_path, "checkpoint", timeout=600)
    ranks = ranks_of(process)
    assert len(ranks) == 2
    if victim.startswith("rank"):
        os.kill(ranks[int(victim[-1])].pid, signal.SIGKILL)
    else:
        process.send_signal(signal.SIGKILL if victim == "invocation" else signal.SIGTERM)
    assert process.wait(timeout=120) == {"invocation": -signal.SIGKILL, "terminate": 143}.get(victim, 1)
    psutil.wait_procs(ranks, timeout=30)
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks), (
        "a rank outlived its run"
    )
    assert not (folder / "result.json").exists()
    if victim != "invocation":  # otherwise no process can retract a rank's connection error
        assert not list(folder.glob("failure*.json"))
    (cut,) = store_runs(tmp_path)
    assert cut["status"] == ("RUNNING" if victim == "invocation" else "KILLED")

    (run,) = study(tmp_path, *arguments[len(SMOKE) :]).values()
    straight = studies[2]["Joint-1 toy_articles s0"]
    assert run["id"] == cut["id"] and run["status"] == "FINISHED" and not list(folder.glob("failure*.json"))
    for key in ("train/loss", "val/loss", "train/rank", "eval/loss"):
        assert points(run, key) == points(straight, key), key
    assert len({(key, step) for key, step, _ in run["points"]}) == len(run["points"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "9"], "9 processes cannot share the 8 sequences of a batch"),
        (["--processes", "0"], "processes must be 1 or more, got 0"),
        (["--shard"], "expected processes=2 or more, got 1"),
    ],
)
def test_more_processes_than_rows_are_rejected_before_the_run(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = bitrank(
        "run", "--profile", "smoke", "--config", "B-FP", "--task", "toy_sentences", *arguments, cwd=tmp_path
    )
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_failure_of_a_rank_is_the_failure_of_the_run(tmp_path: Path) -> None:
    """Bad input found by a rank, and divergence: one failure with its own exit code, no connection errors."""
    arguments = ("--tasks", "toy_articles", "--configs", "B-FP", *TWO)
    done = bitrank(*SMOKE, *arguments, "--set", "adapter_scale=1e38", cwd=tmp_path, timeout=1200)
    (run,) = store_runs(tmp_path)
    assert done.returncode == 1 and run["status"] == "FAILED" and "diverged at step" in run["tags"]["finding"]
    arguments = ("--tasks", "toy_articles", "--configs", "B-Ada", *TWO)
    done = bitrank(*SMOKE, *arguments, "--set", "steps=2", cwd=tmp_path, timeout=1200)
    assert done.returncode == 2 and "too few for AdaLoRA" in done.stdout
