"""Load generator for a store: writes finished runs again under new seeds, as the executor does.

    python benchmarks/replay.py STORE RUN_FOLDER … --writers 4 --runs 10 --first 0

A writer simulates one machine of a study: a process with its own client. It opens each run, sends its events
in the batches of one flush per second, and closes it with all files, through
``bitrank.tracking.mlflow_tracker``. The script prints ``ready`` when all writers have opened the store, waits
for a line, starts them together, and prints one JSON line for each: seconds of every client call by name, and
processor time. :func:`load` starts the script and reads its output.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

from bitrank.process.events import read_events
from bitrank.spec.run_spec import RunSpec, read_spec
from bitrank.tracking.mlflow_tracker import Tracker
from bitrank.tracking.store import open_store
from harness import SideFailed, script

Event = dict[str, Any]
_TIMEOUT_S = 300.0  # a writer that is not ready by then ends the others
FLUSH = 1.0  # seconds between two batches of one run, as in the executor


@dataclass(frozen=True)
class Template:
    """A finished run: its folder with all files for the store, its spec, and its events in batches."""

    folder: Path
    spec: RunSpec
    batches: Sequence[Sequence[Event]]

    @property
    def points(self) -> int:
        """Number of its metric points in the store."""
        seen = {
            (key, event["step"])
            for batch in self.batches
            for event in batch
            for key in event.get("metrics", {})
        }
        return len(seen | {(key, 0) for key in json.loads((self.folder / "result.json").read_text())})


def read_template(folder: Path) -> Template:
    """The finished run in ``folder``. Raises ``ValueError`` if it did not finish."""
    if not (folder / "result.json").exists():
        raise ValueError(f"expected the folder of a finished run, got {folder}, which has no result.json")
    return Template(
        folder, read_spec(folder / "spec.json"), batches(read_events(folder / "events.jsonl"), FLUSH)
    )


def batches(events: Sequence[Event], seconds: float) -> list[list[Event]]:
    """Group ``events`` by flush: the first at once, then at most one batch every ``seconds``."""
    found: list[list[Event]] = []
    sent = float("-inf")
    for event in events:
        if event["time_ms"] - sent > 1000 * seconds:
            found.append([])
            sent = event["time_ms"]
        found[-1].append(event)
    return found


class Timed:
    """A client that records the seconds of its calls by name."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._client, name)

        def timed(*args: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*args, **named)
            finally:
                self.seconds[name].append(time.perf_counter() - started)

        return timed


def write(tracker: Tracker, template: Template, seed: int) -> None:
    """Write one complete run of ``template`` under ``seed``."""
    log = tracker.open(replace(template.spec, seed=seed), None)
    for batch in template.batches:
        log.events(batch)
    log.close(template.folder, "FINISHED", {"exit_code": "0"})


@dataclass(frozen=True)
class Load:
    """Work of concurrent writers: ``runs`` in ``seconds``, the number of client ``calls``, and their times.

    ``log_batch`` has the seconds of each such call; ``cpu`` is the processor time in seconds of the writers
    and of each server process.
    """

    runs: int
    seconds: float
    calls: int
    log_batch: Sequence[float]
    cpu: Mapping[str, float]


def load(
    store: str,
    templates: Sequence[Template],
    writers: int,
    runs: int,
    first: int,
    cpu: Callable[[], dict[str, float]],
) -> Load:
    """Write ``runs`` runs by ``writers`` processes, with seeds from ``first`` on.

    ``cpu`` returns the processor time that the servers have used so far. Raises :class:`SideFailed` if a
    writer fails.
    """
    each, folders = max(len(templates), round(runs / writers)), [template.folder for template in templates]
    command = script("replay.py", store, *folders, "--writers", writers, "--runs", each, "--first", first)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, *command], text=True, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            before, started_at = cpu(), time.perf_counter()
            out, error = process.communicate("\n")
            seconds, after = time.perf_counter() - started_at, cpu()
        finally:
            with suppress(ProcessLookupError):  # normally all have ended already
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise SideFailed((error.strip() or "no message").splitlines()[-1])
    # MLflow's client prints other lines.
    figures = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    served = {name: after[name] - before[name] for name in after}
    return Load(
        each * writers,
        seconds,
        sum(len(times) for one in figures for times in one["calls"].values()),
        [time for one in figures for time in one["calls"]["log_batch"]],
        {"writers": sum(one["cpu"] for one in figures), **served},
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("store")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--writers", type=int, default=1)
    parser.add_argument("--runs", type=int, default=10, help="runs of each writer")
    parser.add_argument("--first", type=int, default=0, help="the first run's seed")
    arguments = parser.parse_args()
    templates = [read_template(folder) for folder in arguments.folders]
    import_module("mlflow")  # once: the writers are forked from here
    fork = get_context("fork")
    barrier, results = fork.Barrier(arguments.writers + 1), fork.SimpleQueue()
    writers = [
        fork.Process(
            target=_writer,
            args=(arguments, templates, arguments.first + number * arguments.runs, barrier, results),
        )
        for number in range(arguments.writers)
    ]
    for writer in writers:
        writer.start()
    barrier.wait(_TIMEOUT_S)
    print("ready", flush=True)
    sys.stdin.readline()
    barrier.wait(_TIMEOUT_S)
    print(*(results.get() for _ in writers), sep="\n")
    return 0


def _writer(
    arguments: argparse.Namespace, templates: Sequence[Template], first: int, barrier: Any, results: Any
) -> None:
    """Open the store, wait for the others twice, write the runs, report the figures.

    Any failure ends all writers.
    """
    try:
        client = Timed(open_store(arguments.store))
        tracker = Tracker(cast(Any, client), arguments.store, templates[0].spec.profile)
        client.seconds.clear()
        barrier.wait(_TIMEOUT_S)
        barrier.wait(_TIMEOUT_S)
        cpu = time.process_time()
        for number in range(arguments.runs):
            write(tracker, templates[number % len(templates)], first + number)
        results.put(json.dumps({"cpu": time.process_time() - cpu, "calls": client.seconds}))
    except BaseException as error:
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=sys.stderr, flush=True)
        os.killpg(0, signal.SIGTERM)
        raise


if __name__ == "__main__":
    sys.exit(main())
