"""Kill a run, its parent or both: the next `matrix` completes the work with equal results, none twice."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from study_tools import SMOKE, bitrank, kill_children_of, numbers, start, store_runs, wait_for

Numbers = list[tuple[str, int, float]]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Numbers]]:
    """Returns the results of a config's uninterrupted runs, made at first use.

    LoRA and AdaLoRA, in bf16 and in NF4, on both kinds of task.
    """

    @cache
    def run(config: str) -> dict[str, Numbers]:
        cwd = tmp_path_factory.mktemp("straight")
        done = bitrank(*SMOKE, "--configs", config, cwd=cwd)
        assert done.returncode == 0, done.stdout + done.stderr
        return {run["name"]: numbers(run) for run in store_runs(cwd)}

    return run


@pytest.mark.parametrize(
    ("config", "task", "how"),
    [
        ("B-FP", "toy_articles", "child"),
        pytest.param("B-Q4", "toy_articles", "parent", marks=pytest.mark.slow),
        pytest.param("B-Ada", "toy_articles", "child", marks=pytest.mark.slow),
        ("Joint-1", "toy_sentences", "parent"),
        ("B-FP", "toy_sentences", "interrupt"),
        ("Joint-1", "toy_articles", "terminate"),
    ],
)
def test_killed_run_resumes_with_equal_results(
    tmp_path: Path, straight, config: str, task: str, how: str
) -> None:
    arguments = (*SMOKE, "--configs", config, "--tasks", task)
    process = start(*arguments, cwd=tmp_path)
    folder = wait_for(tmp_path, "checkpoint")
    if how == "child":
        kill_children_of(process)
    else:
        process.send_signal(
            {"parent": signal.SIGKILL, "interrupt": signal.SIGINT, "terminate": signal.SIGTERM}[how]
        )
    code = process.wait(timeout=60)
    assert code == {"child": 1, "parent": -signal.SIGKILL, "interrupt": 130, "terminate": 143}[how]
    assert not (folder / "result.json").exists(), "the run was over before the signal came: it proves nothing"
    (cut,) = store_runs(tmp_path)
    assert cut["status"] == ("RUNNING" if how == "parent" else "KILLED")

    again = bitrank(*arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    (run,) = store_runs(tmp_path)
    assert run["id"] == cut["id"] and run["status"] == "FINISHED"
    assert numbers(run) == straight(config)[run["name"]]
    keys = [(key, step) for key, step, _ in run["points"]]
    assert len(keys) == len(set(keys))


def test_second_invocation_does_not_disturb_a_running_one(tmp_path: Path) -> None:
    arguments = (*SMOKE, "--configs", "B-FP", "--tasks", "toy_articles", "--set", "steps=400")
    process = start(*arguments, cwd=tmp_path)
    wait_for(tmp_path, "train")
    second = bitrank(*arguments, cwd=tmp_path)
    assert second.returncode == 1
    assert "another bitrank process is running it" in second.stdout
    assert process.wait(timeout=120) == 0
    (run,) = store_runs(tmp_path)
    assert run["status"] == "FINISHED"
