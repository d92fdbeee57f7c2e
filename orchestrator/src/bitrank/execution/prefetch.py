"""Prefetch for queued runs: download, convert, tokenize and plan in the background while other runs train.

``python -m bitrank.execution.prefetch`` reads specs from standard input, at low priority for processor and
memory. A run that needs an unfinished asset waits for it, as for another run's. Errors are ignored here: the
run that needs the asset reports them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from bitrank.execution.options import RUN_BYTES
from bitrank.process.environment import run_environment
from bitrank.process.fast_imports import quick_imports, quiet_libraries
from bitrank.process.lifetime import exit_with_parent
from bitrank.spec.plan_request import plan_place
from bitrank.spec.run_spec import RunSpec

_NICE = 10  # about a tenth of a core when runs use all cores, which is enough to finish in time


@contextmanager
def prefetch(specs: Sequence[RunSpec], slots: int) -> Iterator[None]:
    """Prefetch inside the block what ``specs`` need, in their order, except the first ``slots`` specs.

    Does nothing if a run has a memory limit, because then no other process may use memory.
    """
    started = {_prefetch_key(spec) for spec in specs[:slots]}
    later = {
        _prefetch_key(spec): spec
        for spec in specs[slots:]
        if _prefetch_key(spec) not in started and not _mark(spec).exists()
    }
    if not later or any(spec.memory_limit for spec in specs):
        yield
        return
    process = subprocess.Popen(
        [sys.executable, "-m", "bitrank.execution.prefetch"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=run_environment(specs[0]),
        start_new_session=True,
    )
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(json.dumps([asdict(spec) for spec in later.values()]).encode())
        yield
    finally:
        _end(process)


def main() -> int:
    exit_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # an exit removes unfinished files
    specs = [RunSpec(**fields) for fields in json.load(sys.stdin)]
    _lower_priority()
    quiet_libraries()
    with quick_imports():
        from bitrank.models.locate import folder_of
        from bitrank.run.data import load_data
    for spec in specs:
        with contextlib.suppress(Exception):
            folder_of(spec.model_source)
            load_data(spec)
            if spec.plan_request is not None:
                _plan_ahead(spec)
            _mark(spec).parent.mkdir(exist_ok=True)
            _mark(spec).touch()
    return 0


def _plan_ahead(spec: RunSpec) -> None:
    """Make the plan of a planned arm in a process of its own, which has this one's low priority.

    Measuring needs the memory of a run. Without that much free memory the plan is left to its run.
    """
    if psutil.virtual_memory().available < RUN_BYTES:
        return
    subprocess.run(
        [sys.executable, "-m", "bitrank.planning"],
        input=json.dumps([asdict(spec)]).encode(),
        env=run_environment(spec),
        check=False,
    )


def _lower_priority() -> None:
    if hasattr(os, "nice"):
        os.nice(_NICE)
    # Linux first divides the processor among sessions, each with its own niceness (autogroup). When memory
    # runs out, this process is killed before any run (oom_score_adj).
    for name, value in (("autogroup", _NICE), ("oom_score_adj", 1000)):
        with contextlib.suppress(OSError):
            Path("/proc/self", name).write_text(str(value))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _prefetch_key(spec: RunSpec) -> tuple[Any, ...]:
    """Fields of ``spec`` that determine the files of :func:`~bitrank.models.locate.folder_of` and
    :func:`~bitrank.run.data.load_data`, and the plan of a planned arm.
    """
    fields = (spec.model, spec.task, spec.data, spec.file_options, spec.max_length, spec.special_tokens)
    plan = plan_place(spec).name if spec.plan_request is not None else None
    return *fields, spec.model_digest, spec.data_digest, plan


def _mark(spec: RunSpec) -> Path:
    """The file that marks the prefetch for ``spec`` as done; if the cache is deleted, a run only waits."""
    from bitrank_data import cache_dir

    return cache_dir() / "prepared" / hashlib.sha256(repr(_prefetch_key(spec)).encode()).hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())
