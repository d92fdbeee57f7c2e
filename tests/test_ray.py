"""Two workers of a real Ray cluster without a shared disk: no point is lost with a worker."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from bitrank.spec.run_spec import read_spec
from server_tools import leases, postgres, stored_runs, tracking_server
from study_tools import SMOKE, bitrank, numbers, run_processes, store_runs

pytest.importorskip("ray", reason="needs Ray: pip install 'bitrank[ray]'")
LONG = (
    "--set",
    "steps=400",
    "--set",
    "checkpoint_every=20",
    "--set",
    "eval_every=50",
)  # long enough to kill a worker between steps
WORDS = (*SMOKE, "--configs", "B-FP,Joint-1", *LONG)
# Ray finds a node on the loopback interface only if configured, and the timeouts make it detect dead nodes
# within seconds instead of half a minute.
RAY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled",
       "RAY_health_check_period_ms": "500",
       "RAY_health_check_timeout_ms": "500", "RAY_health_check_failure_threshold": "3"}  # fmt: skip


@dataclass
class Site:
    """A tracking server, its database and a cluster; ``cwd`` is the working folder of the driver."""

    store: str
    database: str
    cluster: Any
    cwd: Path

    def arguments(self, *more: str) -> tuple[str, ...]:
        return (
            *WORDS,
            "--executor",
            "ray",
            "--store",
            self.store,
            "--ray-address",
            self.cluster.address,
            *more,
        )

    def start(self, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bitrank", *self.arguments(*more)]
        return subprocess.Popen(
            command, cwd=self.cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def runs(self) -> list[dict[str, Any]]:
        return stored_runs(self.database)

    def run(self, run_id: str) -> dict[str, Any]:
        return next(run for run in self.runs() if run["id"] == run_id)

    def wait_for(
        self, driver: subprocess.Popen[str], condition: Callable[[dict[str, Any]], bool], timeout: float = 400
    ) -> dict[str, Any]:
        """The first run for which ``condition`` is true, while ``driver`` runs."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and driver.poll() is None:
            if found := [run for run in self.runs() if condition(run)]:
                return found[0]
            time.sleep(0.1)
        driver.kill()
        runs = [(run["name"], run["status"], run["tags"]) for run in self.runs()]
        raise AssertionError(f"no run came so far: {runs}; output of the driver: {driver.communicate()[0]}")

    def worker_of(self, run: dict[str, Any]) -> psutil.Process | None:
        """The Ray worker whose child process computes ``run``; None if there is none."""
        for node in self.cluster.worker_nodes:
            for process, arguments in run_processes(raylet_of(node)):
                # The run may end meanwhile, and its folder may be removed.
                with suppress(FileNotFoundError, psutil.NoSuchProcess):
                    if read_spec(Path(arguments[-1]) / "spec.json").spec_id == run["tags"]["spec_id"]:
                        return process.parent()
        return None

    def wait_for_worker(
        self, driver: subprocess.Popen[str], condition: Callable[[dict[str, Any]], bool]
    ) -> tuple[dict[str, Any], psutil.Process]:
        """The first run that satisfies ``condition`` and has a process, and its worker.

        The process is checked because a run's record keeps the status RUNNING after its process has ended.
        """
        workers: dict[str, psutil.Process] = {}

        def at_work(run: dict[str, Any]) -> bool:
            if condition(run) and (worker := self.worker_of(run)):
                workers[run["id"]] = worker
            return run["id"] in workers

        run = self.wait_for(driver, at_work)
        return run, workers[run["id"]]


def raylet_of(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def has_snapshot(run: dict[str, Any]) -> bool:
    return run["status"] == "RUNNING" and "snapshot" in run["tags"]


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in RAY.items():
            patch.setenv(name, value)
        database = f"sqlite:///{folder / 'mlflow.db'}"
        if request.param == "postgres":
            database = stack.enter_context(postgres())
        store = stack.enter_context(tracking_server(database, folder))
        cluster = Cluster(
            True, head_node_args={"num_cpus": 0, "node_ip_address": "127.0.0.1", "include_dashboard": False}
        )
        stack.callback(cluster.shutdown)
        for _ in range(2):
            cluster.add_node(num_cpus=1, memory=4 * 2**30, node_ip_address="127.0.0.1")
        yield Site(store, database, cluster, folder)


@pytest.fixture
def straight(tmp_path: Path) -> Callable[..., dict[str, dict[str, Any]]]:
    """The same specs run by the local executor without interruption."""

    def run(task: str, *more: str) -> dict[str, dict[str, Any]]:
        done = bitrank(*WORDS, "--tasks", task, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return {run["name"]: run for run in store_runs(tmp_path)}

    return run


def check_points(runs: list[dict[str, Any]], straight: dict[str, dict[str, Any]]) -> None:
    """The tables have the points of uninterrupted runs: equal keys, steps and values, without duplicates."""
    assert {run["status"] for run in runs} == {"FINISHED"}
    for run in runs:
        expected = straight[run["name"]]
        assert [point[:2] for point in run["points"]] == [point[:2] for point in expected["points"]], run[
            "name"
        ]
        assert numbers(run) == numbers(expected), run["name"]
        assert "snapshot" not in run["tags"]


Straight = Callable[..., dict[str, dict[str, Any]]]


@pytest.mark.parametrize(
    ("task", "victim"),
    [("toy_sentences", "worker"), pytest.param("toy_articles", "machine", marks=pytest.mark.slow)],
)
def test_lost_worker_neither_loses_nor_duplicates_points(
    site: Site, straight: Straight, task: str, victim: str
) -> None:
    driver = site.start("--tasks", task)
    run, worker = site.wait_for_worker(driver, lambda run: has_snapshot(run) and run["tags"]["task"] == task)
    node = next(n for n in site.cluster.worker_nodes if worker.ppid() == raylet_of(n))
    os.kill(worker.pid if victim == "worker" else raylet_of(node), signal.SIGKILL)
    output, _ = driver.communicate(timeout=900)
    assert driver.returncode == 0, output
    assert (
        "2 of 2 runs are complete" in output and "its worker was lost and another continued it" in output
    ), output
    runs = [run for run in site.runs() if run["tags"]["task"] == task]
    assert len(runs) == 2 and leases(site.database) == []
    continued = next(found for found in runs if found["id"] == run["id"])
    assert continued["tags"]["resumed_from"] >= run["tags"]["snapshot"]
    check_points(runs, straight(task))


def test_two_drivers_in_different_order_train_every_spec_once(site: Site) -> None:
    common = ("--tasks", "toy_articles", "--seeds", "2", "--set", "steps=60")
    orders = ("B-FP,Joint-1", "Joint-1,B-FP")
    drivers = [site.start(*common, "--configs", order) for order in orders]
    outputs = [driver.communicate(timeout=900)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], outputs
    for output in outputs:
        assert "2 of 2 runs are complete" in output and "Traceback" not in output, output
    runs = [run for run in site.runs() if run["tags"]["seed"] == "2"]
    assert [run["status"] for run in runs] == ["FINISHED"] * 2 and leases(site.database) == []
    for name in ("B-FP toy_articles s2", "Joint-1 toy_articles s2"):
        # A worker announces the machine when it starts to train, and not when it finds a complete run.
        trained = [bool(re.search(rf"{name} +running +on ", output)) for output in outputs]
        assert sorted(trained) == [False, True], outputs


@pytest.mark.slow
def test_stopped_run_is_closed_and_resumed_by_the_same_command(site: Site, straight: Straight) -> None:
    arguments = ("--tasks", "toy_articles", "--configs", "B-FP", "--seeds", "1", "--retries", "0")
    driver = site.start(*arguments)
    run = site.wait_for(driver, lambda run: has_snapshot(run) and run["name"] == "B-FP toy_articles s1")
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=900)
    assert driver.returncode == 130 and "repeat the same command to continue" in output, output
    stopped = site.run(run["id"])
    assert stopped["status"] == "KILLED" and "exit_code" in stopped["tags"] and leases(site.database) == []

    driver = site.start(*arguments)
    _, worker = site.wait_for_worker(
        driver,
        lambda found: (
            found["id"] == run["id"]
            and found["status"] == "RUNNING"
            and len(found["points"]) > len(stopped["points"])
        ),
    )
    os.kill(worker.pid, signal.SIGKILL)
    output, _ = driver.communicate(timeout=900)
    assert driver.returncode == 1 and "lost its worker 1 times" in output and "Traceback" not in output, (
        output
    )
    lost = site.run(run["id"])
    assert lost["status"] == "KILLED" and "lost its worker" in lost["tags"]["failure"]

    output, _ = site.start(*arguments).communicate(timeout=900)
    runs = [found for found in site.runs() if found["name"] == "B-FP toy_articles s1"]
    assert [found["id"] for found in runs] == [run["id"]], output
    check_points(runs, straight("toy_articles", "--configs", "B-FP", "--seeds", "1"))
