"""Our side of a comparison: bitrank runs by the real executor; prints a JSON line of figures.

    python benchmarks/ours.py --config Joint-2 --task movie_sentences --steps 24 --threads 2 [--set key=value]
    python benchmarks/ours.py --plan FILE --task wiki_articles --steps 30 --threads 2 --until tested

``--until trained`` ends the run after its last training step and skips the test before training;
``zero-shot`` ends it there too but includes that test; ``tested`` completes the run. The specs go to
:func:`bitrank.execution.local.run_all` as in ``bitrank run``, with a tracker that stores nothing, and the
figures are read from the run folders. Each run is a process.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from bitrank.execution.attempt import Job
from bitrank.execution.interrupts import Interrupted
from bitrank.execution.local import run_all
from bitrank.process.events import read_events
from bitrank.process.run_folder import result_of
from bitrank.spec.make_spec import make_spec
from bitrank.spec.parse import parse_setting
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec
from bitrank.tracking.mlflow_tracker import Tracker
from bitrank.tracking.run_state import State
from harness import WARM_UP, combined


class _NullTracker:
    """A tracker, and the log of each run, that stores nothing."""

    def hold(self, _spec_id: str) -> nullcontext[None]:
        return nullcontext()

    def find(self, _spec_id: str) -> None:
        """No run is stored."""

    def open(self, _spec: RunSpec, _run_id: str | None) -> _NullTracker:
        return self

    def events(self, events: Sequence[object]) -> None: ...

    def close(self, folder: Path, status: str, tags: dict[str, str]) -> None: ...


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.data_limit:
        # Limits the private writable memory of this process and of its child processes.
        resource.setrlimit(resource.RLIMIT_DATA, (arguments.data_limit, arguments.data_limit))
    specs = [_spec(arguments, arguments.seed + number) for number in range(arguments.processes)]
    with tempfile.TemporaryDirectory() as folder:
        figures = [figures_of(job) for job in run(specs, Path(folder), arguments.until)]
    print(json.dumps(combined(figures)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", default="")
    parser.add_argument("--plan", help="a plan file instead of a config")
    parser.add_argument("--task", required=True)
    parser.add_argument("--model")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="concurrent runs, with consecutive seeds")
    parser.add_argument("--until", choices=["trained", "zero-shot", "tested"], default="trained")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--data-limit",
        type=int,
        help="bytes of private memory that the operating system allows (RLIMIT_DATA)",
    )
    return parser


def _spec(arguments: argparse.Namespace, seed: int) -> RunSpec:
    steps = arguments.steps
    overrides = {
        "steps": steps,
        "threads": arguments.threads,
        "plan": arguments.plan,
        "model": arguments.model,
    }
    # No validation or checkpoint, and a log line only every third step, between the timed steps.
    overrides |= {"eval_every": steps, "checkpoint_every": steps, "log_every": WARM_UP}
    overrides |= dict(parse_setting(text) for text in arguments.set)
    return replace(make_spec(find_profile("laptop"), arguments.config, arguments.task, overrides), seed=seed)


def run(specs: Sequence[RunSpec], folder: Path, until: str) -> list[Job]:
    """Run ``specs`` concurrently below ``folder``, until all finish their last step, or completely."""
    jobs = [Job(spec, folder / str(number), State("new")) for number, spec in enumerate(specs)]
    if until == "trained":
        for job in jobs:
            job.folder.mkdir()
            # With this file the run skips the test before training, as if it had been done.
            (job.folder / "zero_shot.json").write_text("{}")

    def changed(_: Job | None) -> None:
        if until != "tested" and all(_trained(job) for job in jobs):
            raise Interrupted(signal.SIGTERM)

    try:
        run_all(jobs, cast(Tracker, _NullTracker()), len(jobs), changed)
    except Interrupted:
        if not all(_trained(job) for job in jobs):
            raise
    return jobs


def _trained(job: Job) -> bool:
    return any(event["event"] == "train" and event["step"] == event["steps"] for event in job.events)


def figures_of(job: Job) -> dict[str, Any]:
    """Figures of the run in ``job``.

    Speeds count the steps after the warm-up; ``wall_tok_s`` includes the time between steps. ``*_at_s`` are
    seconds since the process was started. Memory is the peak resident set (VmHWM) in MiB: after imports, when
    the model was ready, after the last training step, and at the end. Exits with the run's message if it
    failed.
    """
    events = read_events(job.folder / "events.jsonl")
    train = [event for event in events if event["event"] == "train"]
    if not _trained(job) or (job.message and job.status not in {"finished", "killed"}):
        log = job.folder / "log.txt"
        sys.exit(
            job.message or (log.read_text()[-300:] if log.exists() else "the run ended without a message")
        )
    started_ms = (time.time() - (time.monotonic() - job.started)) * 1000
    phases = {event["phase"]: event for event in events if event["event"] == "phase"}
    machine = next(event for event in events if event["event"] == "machine")
    return {
        **speed(train),
        "loss": train[-1]["metrics"]["train/loss"],
        "import_mib": machine["live"]["peak_mib"],
        "ready_mib": phases["zero-shot"]["live"]["peak_mib"],
        "peak_mib": train[-1]["live"]["peak_mib"],
        "device_mib": max(event["live"]["device_mib"] for event in train),
        "ready_at_s": (phases["zero-shot"]["time_ms"] - started_ms) / 1000,
        "imported_at_s": (machine["time_ms"] - started_ms) / 1000,
        "first_step_at_s": (train[0]["time_ms"] - started_ms) / 1000,
        "losses": {event["step"]: event["metrics"]["train/loss"] for event in train},
        "points": [(event["step"], event["tok_s"] * event["seconds"], event["seconds"]) for event in train],
        **_end(job),
    }


def speed(train: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Tokens, seconds and tokens/s of the steps after the warm-up, from the run's ``train`` events."""
    last = train[-1]
    first = next((event for event in train if event["step"] >= WARM_UP), last)
    if first is last:
        sys.exit(f"--steps must be above {WARM_UP}: the first {WARM_UP} are a warm-up")
    tokens = last["tok_s"] * last["seconds"] - first["tok_s"] * first["seconds"]
    seconds, wall = last["seconds"] - first["seconds"], (last["time_ms"] - first["time_ms"]) / 1000
    steps = last["step"] - first["step"]
    return {
        "tok_s": tokens / seconds,
        "wall_tok_s": tokens / wall,
        "step_s": seconds / steps,
        "tokens": tokens,
        "seconds": seconds,
        "steps": steps,
    }


def _end(job: Job) -> dict[str, Any]:
    """Quality and times of a completed run; empty otherwise."""
    result = result_of(job.folder)
    if result is None:
        return {}
    return {
        "quality": result.get("eval/acc", result.get("eval/ppl")),
        "end_mib": result["mem/peak_mib"],
        "setup_s": result["time/setup_s"],
        "total_s": result["time/total_s"],
    }


if __name__ == "__main__":
    sys.exit(main())
