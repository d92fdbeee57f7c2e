"""What later runs need is fetched and made ready while the first ones train: assets, weights from a hub, a
converted model, tokens.

``python -m bitrank.execution.prefetch`` reads specs from its input. It yields processor and memory to runs,
and a run that needs what is still being made waits for it, as for another run's. Where something cannot be
made, the run that needs it says why: here it is passed over.
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

from bitrank.process.environment import run_environment
from bitrank.process.fast_imports import quick_imports, quiet_libraries
from bitrank.process.lifetime import exit_with_parent
from bitrank.spec.run_spec import RunSpec

_NICE = 10  # a tenth of a core beside runs that take all of it: enough to be done in time


@contextmanager
def prefetch(specs: Sequence[RunSpec], slots: int) -> Iterator[None]:
    """Inside, what ``specs`` need and was never made ready here is, in their order, but for what the first
    ``slots`` of them begin with.

    Not where runs have a memory limit: there nothing may run beside them.
    """
    begun = {_prefetch_key(spec) for spec in specs[:slots]}
    later = {
        _prefetch_key(spec): spec
        for spec in specs[slots:]
        if _prefetch_key(spec) not in begun and not _mark(spec).exists()
    }
    if not later or any(spec.memory_limit for spec in specs):
        yield
        return
    process = subprocess.Popen(
        [sys.executable, "-m", "bitrank.execution.prefetch"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=run_environment(specs[0]), start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(json.dumps([asdict(spec) for spec in later.values()]).encode())
        yield
    finally:
        _end(process)


def main() -> int:
    exit_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that what is half made is swept away
    specs = [RunSpec(**fields) for fields in json.load(sys.stdin)]
    _yield_to_runs()
    quiet_libraries()
    with quick_imports():
        from bitrank.models.locate import folder_of
        from bitrank.run.data import load_data
    for spec in specs:
        with contextlib.suppress(Exception):
            folder_of(spec.model)
            load_data(spec)
            _mark(spec).parent.mkdir(exist_ok=True)
            _mark(spec).touch()
    return 0


def _yield_to_runs() -> None:
    if hasattr(os, "nice"):
        os.nice(_NICE)
    for name, value in (
        (
            "autogroup",
            _NICE,
        ),  # Linux shares the processor out among sessions first, each with a niceness of its own
        ("oom_score_adj", 1000),  # where memory runs out, this process ends before any run does
    ):
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
    """What :func:`~bitrank.models.locate.folder_of` and :func:`~bitrank.run.data.load_data` make for
    ``spec``, by what it is made of.
    """
    fields = (spec.model, spec.task, spec.data, spec.max_length, spec.special_tokens)
    return *fields, spec.model_digest, spec.data_digest


def _mark(spec: RunSpec) -> Path:
    """The file that says that its material was made ready here once. Whoever empties the cache otherwise
    costs a run its wait, no more.
    """
    from bitrank_data import cache_dir

    return cache_dir() / "prepared" / hashlib.sha256(repr(_prefetch_key(spec)).encode()).hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())
