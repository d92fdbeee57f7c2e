"""Writers of a store that did not train: finished runs written again, as the executor writes them, under new
seeds.

    python benchmarks/replay.py STORE RUN_FOLDER … --writers 4 --runs 10 --first 0

A writer is one machine of a study, a process with a client of its own. It opens each run, sends its events in
the batches that a look a second would have made of them, and closes it with every file, all through
``bitrank.tracking.mlflow_tracker``. The script prints ``ready`` when all have opened the store, waits for a
line, lets them begin together, and prints one JSON line for each: seconds of every call of the client by
name, and processor time. :func:`load` is the side that starts it.
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
_PATIENCE = 300.0  # seconds until a writer that does not come ends the others
FLUSH = 1.0  # seconds between two batches of one run, as the executor has it


@dataclass(frozen=True)
class Template:
    """A finished run: its spec, its folder with everything that goes into the store, and its events as they
    were flushed.
    """

    folder: Path
    spec: RunSpec
    batches: Sequence[Sequence[Event]]

    @property
    def points(self) -> int:
        """Metric points that the store has of it."""
        seen = {
            (key, event["step"])
            for batch in self.batches
            for event in batch
            for key in event.get("metrics", {})
        }
        return len(seen | {(key, 0) for key in json.loads((self.folder / "result.json").read_text())})


def read_template(folder: Path) -> Template:
    """The finished run in ``folder``. Raises ``ValueError`` when it did not finish."""
    if not (folder / "result.json").exists():
        raise ValueError(f"expected the folder of a finished run, got {folder}, which has no result.json")
    return Template(
        folder, read_spec(folder / "spec.json"), batches(read_events(folder / "events.jsonl"), FLUSH)
    )


def batches(events: Sequence[Event], seconds: float) -> list[list[Event]]:
    """``events`` as one who looks all the time and sends every ``seconds`` would send them: the first at
    once, later ones together.
    """
    found: list[list[Event]] = []
    sent = float("-inf")
    for event in events:
        if event["time_ms"] - sent > 1000 * seconds:
            found.append([])
            sent = event["time_ms"]
        found[-1].append(event)
    return found


class Timed:
    """A client whose calls are timed: ``seconds`` by the name of the call."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._client, name)

        def timed(*words: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*words, **named)
            finally:
                self.seconds[name].append(time.perf_counter() - started)

        return timed


def write(tracker: Tracker, template: Template, seed: int) -> None:
    """One run of ``template`` under ``seed``, from its opening to its end."""
    log = tracker.open(replace(template.spec, seed=seed), None)
    for batch in template.batches:
        log.events(batch)
    log.close(template.folder, "FINISHED", {"exit_code": "0"})


@dataclass(frozen=True)
class Load:
    """What writers that began together did to a store: ``runs`` in ``seconds``, ``calls`` of the client in
    all, and the seconds of each ``log_batch``. ``cpu`` is processor time in seconds, of the writers and of
    the processes that serve the store."""

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
    """``runs`` runs written by ``writers`` processes, with seeds from ``first`` on; ``cpu`` tells what the
    servers have used so far.

    Raises :class:`SideFailed` when a writer fails.
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
            before, begun = cpu(), time.perf_counter()
            out, error = process.communicate("\n")
            seconds, after = time.perf_counter() - begun, cpu()
        finally:
            with suppress(ProcessLookupError):  # none is left, unless this side was ended
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise SideFailed((error.strip() or "no word").splitlines()[-1])
    figures = [
        json.loads(line) for line in out.splitlines() if line.startswith("{")
    ]  # MLflow's client speaks too
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
    together, told = fork.Barrier(arguments.writers + 1), fork.SimpleQueue()
    writers = [
        fork.Process(
            target=_writer,
            args=(arguments, templates, arguments.first + number * arguments.runs, together, told),
        )
        for number in range(arguments.writers)
    ]
    for writer in writers:
        writer.start()
    together.wait(_PATIENCE)
    print("ready", flush=True)
    sys.stdin.readline()
    together.wait(_PATIENCE)
    print(*(told.get() for _ in writers), sep="\n")
    return 0


def _writer(
    arguments: argparse.Namespace, templates: Sequence[Template], first: int, together: Any, told: Any
) -> None:
    """Open the store, wait for the others twice, write the runs, tell the figures. Whatever fails ends all of
    them.
    """
    try:
        client = Timed(open_store(arguments.store))
        tracker = Tracker(cast(Any, client), arguments.store, templates[0].spec.profile)
        client.seconds.clear()
        together.wait(_PATIENCE)
        together.wait(_PATIENCE)
        cpu = time.process_time()
        for number in range(arguments.runs):
            write(tracker, templates[number % len(templates)], first + number)
        told.put(json.dumps({"cpu": time.process_time() - cpu, "calls": client.seconds}))
    except BaseException as error:
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=sys.stderr, flush=True)
        os.killpg(0, signal.SIGTERM)
        raise


if __name__ == "__main__":
    sys.exit(main())
