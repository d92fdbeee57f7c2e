"""Resources of runs on a cluster, and options that the Ray executor rejects."""

from __future__ import annotations

import importlib.util

import pytest
from bitrank.cli.main import main
from bitrank.errors import UserError
from bitrank.execution.ray.cluster import capacity, needed
from bitrank.execution.registry import EXECUTORS
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec

GIB = 2**30
SMALL, BIG = {"CPU": 4.0, "memory": 8.0 * GIB}, {"CPU": 16.0, "memory": 64.0 * GIB}
GPU = {**BIG, "GPU": 2.0}


def spec(**given: object) -> RunSpec:
    return make_spec(find_profile("smoke"), "B-FP", "toy_sentences", {"threads": 1, **given})


@pytest.mark.parametrize(
    ("given", "machines", "expected"),
    [
        ({}, [SMALL], (1, 0, 3)),
        ({"threads": 2, "processes": 3}, [SMALL, BIG], (6, 0, 9)),
        ({"memory_limit": GIB}, [SMALL], (1, 0, 1)),
        ({}, [SMALL, GPU], (1, 1, 3)),
        ({"processes": 2}, [GPU], (2, 2, 6)),
        ({"device": "cpu"}, [SMALL, GPU], (1, 0, 3)),
    ],
)
def test_resources_of_a_run(
    given: dict[str, int], machines: list[dict[str, float]], expected: tuple[int, int, int]
) -> None:
    need = needed(spec(**given), machines)
    assert (need["CPU"], need["GPU"], need["memory"] / GIB) == expected


def test_a_run_without_threads_needs_the_cores_of_the_smallest_machine() -> None:
    from dataclasses import replace

    assert needed(replace(spec(), threads=None), [BIG, SMALL])["CPU"] == 4


def test_capacity_counts_parallel_runs() -> None:
    assert capacity({"CPU": 1, "GPU": 0, "memory": 3 * GIB}, [SMALL, BIG]) == 2 + 16
    assert capacity({"CPU": 1, "GPU": 1, "memory": 3 * GIB}, [SMALL, GPU]) == 2


@pytest.mark.parametrize(
    ("given", "machines"),
    [({"threads": 5}, [SMALL]), ({"device": "cuda"}, [SMALL]), ({"processes": 3}, [GPU]), ({}, [])],
)
def test_the_error_for_a_run_that_fits_no_machine_lists_the_machines(
    given: dict[str, int], machines: list[dict[str, float]]
) -> None:
    with pytest.raises(
        UserError, match=r"needs .* cores, .* GPUs, .* GiB of one machine, and the cluster's are: "
    ):
        needed(spec(**given), machines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--executor", "ray"], "needs a tracking server as its store, and runs is a file"),
        (["--executor", "ray", "--store", "sqlite:///x.db"], "needs a tracking server as its store"),
        (
            ["--executor", "ray", "--store", "http://127.0.0.1:9", "--ray-address", "ray://h:1"],
            "is an address of Ray Client",
        ),
        (["--retries", "-1"], "--retries must be 0 or more, got -1"),
    ],
)
@pytest.mark.parametrize(
    "command",
    [["matrix"], ["run", "--config", "B-FP", "--task", "toy_sentences"], ["study", "allocators"]],
    ids=str,
)
def test_invalid_options_are_rejected_before_anything_starts(
    capsys, monkeypatch: pytest.MonkeyPatch, command: list[str], arguments: list[str], message: str
) -> None:
    here = importlib.util.find_spec
    monkeypatch.setattr(
        "bitrank.execution.ray.driver.find_spec", lambda name: here("json") if name == "ray" else here(name)
    )
    assert main([*command, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_error_without_ray_gives_the_install_command(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitrank.execution.ray.driver.find_spec", lambda name: None)
    assert main(["matrix", "--profile", "smoke", "--executor", "ray", "--store", "http://127.0.0.1:9"]) == 2
    assert "-m pip install 'bitrank[ray]'" in capsys.readouterr().err


def test_the_help_lists_every_executor(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["matrix", "--help"])
    output = capsys.readouterr().out
    assert all(f"{name}: {executor.about[:20]}" in output for name, executor in EXECUTORS.items())
