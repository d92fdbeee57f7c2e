"""Writers of a store that did not train: finished runs written again, as the executor writes them, under new seeds.

    python benchmarks/replay.py STORE RUN_FOLDER … --runs 10 --first 0

One process is one machine of a study. It opens each run, sends its events in the batches that a look a second would have made of them,
and closes it with every file, all through ``bitrank.tracking``. It prints ``ready``, waits for a line, and prints one JSON line: seconds
of every call of the client by name, its own processor time, and the wall time. :func:`load` is the side that starts several of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from bitrank.events import read_events
from bitrank.specs import RunSpec, read_spec
from bitrank.store import open_store
from bitrank.tracking import Tracker
from harness import SideFailed, script

Event = dict[str, Any]
FLUSH = 1.0  # seconds between two batches of one run, as the executor has it


@dataclass(frozen=True)
class Template:
    """A finished run: its spec, its folder with everything that goes into the store, and its events as they were flushed."""

    folder: Path
    spec: RunSpec
    batches: Sequence[Sequence[Event]]

    @property
    def points(self) -> int:
        """Metric points that the store has of it."""
        seen = {(key, event["step"]) for batch in self.batches for event in batch for key in event.get("metrics", {})}
        return len(seen | {(key, 0) for key in json.loads((self.folder / "result.json").read_text())})


def read_template(folder: Path) -> Template:
    """The finished run in ``folder``. Raises ``ValueError`` when it did not finish."""
    if not (folder / "result.json").exists():
        raise ValueError(f"expected the folder of a finished run, got {folder}, which has no result.json")
    return Template(folder, read_spec(folder / "spec.json"), batches(read_events(folder / "events.jsonl"), FLUSH))


def batches(events: Sequence[Event], seconds: float) -> list[list[Event]]:
    """``events`` as one who looks all the time and sends every ``seconds`` would send them: the first at once, later ones together."""
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
    """What writers that began together did to a store: ``runs`` in ``seconds``, ``calls`` of the client in all, and the seconds of each
    ``log_batch``. ``cpu`` is processor time in seconds, of the writers and of the processes that serve the store."""

    runs: int
    seconds: float
    calls: int
    log_batch: Sequence[float]
    cpu: Mapping[str, float]


def load(store: str, templates: Sequence[Template], writers: int, runs: int, first: int, cpu: Callable[[], dict[str, float]]) -> Load:
    """``runs`` runs written by ``writers`` processes, with seeds from ``first`` on; ``cpu`` tells what the servers have used so far.

    Raises :class:`SideFailed` when a writer fails.
    """
    each, folders = max(len(templates), round(runs / writers)), [template.folder for template in templates]
    commands = [script("replay.py", store, *folders, "--runs", each, "--first", first + number * each) for number in range(writers)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [subprocess.Popen([sys.executable, *command], text=True, **pipes) for command in commands]  # type: ignore[call-overload]
    try:
        for process in started:
            process.stdout.readline()
        before, begun = cpu(), time.perf_counter()
        for process in started:
            process.stdin.write("\n")
            process.stdin.flush()
        ends = [process.communicate() for process in started]
        seconds, after = time.perf_counter() - begun, cpu()
    finally:
        for process in started:
            process.kill()  # no effect on one that has ended
    for process, (_, error) in zip(started, ends, strict=True):
        if process.returncode:
            raise SideFailed((error.strip() or "no word").splitlines()[-1])
    figures = [json.loads(out.splitlines()[-1]) for out, _ in ends]  # MLflow's client says more before it
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
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first run's seed")
    arguments = parser.parse_args()
    templates = [read_template(folder) for folder in arguments.folders]
    client = Timed(open_store(arguments.store))
    tracker = Tracker(cast(Any, client), arguments.store, templates[0].spec.profile)
    client.seconds.clear()
    print("ready", flush=True)
    sys.stdin.readline()
    started, cpu = time.perf_counter(), time.process_time()
    for number in range(arguments.runs):
        write(tracker, templates[number % len(templates)], arguments.first + number)
    print(json.dumps({"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu, "calls": client.seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
