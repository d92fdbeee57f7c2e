"""What later runs need is fetched and made ready while the first ones train: assets from the network, a converted model, tokens.

``python -m bitrank.preparing`` reads specs from its input. It yields the processor to runs, and a run that needs what
is still being made waits for it, as for another run's. Where something cannot be made, the run that needs it says why: here it is passed
over.
"""

from __future__ import annotations

import contextlib
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

from bitrank.child import exit_with_parent
from bitrank.environment import run_environment
from bitrank.imports import quick_imports, quiet_libraries
from bitrank.specs import RunSpec

_NICE = 10  # a tenth of a core beside runs that take all of it: enough to be done in time


@contextmanager
def preparing(specs: Sequence[RunSpec], slots: int) -> Iterator[None]:
    """Inside, what ``specs`` need is made ready in their order, but for the first ``slots`` of them, which start at once by themselves."""
    begun = {_material(spec) for spec in specs[:slots]}
    later = list({_material(spec): spec for spec in specs[slots:] if _material(spec) not in begun}.values())
    if not later:
        yield
        return
    process = subprocess.Popen(
        [sys.executable, "-m", "bitrank.preparing"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=run_environment(later[0]), start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(json.dumps([asdict(spec) for spec in later]).encode())
        yield
    finally:
        process.terminate()
        process.wait()


def main() -> int:
    exit_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that what is half made is swept away
    specs = [RunSpec(**words) for words in json.load(sys.stdin)]
    _yield_to_runs()
    quiet_libraries()
    with quick_imports():
        from bitrank.material import load_material
        from bitrank.models import locate
    for spec in specs:
        with contextlib.suppress(Exception):
            locate(spec.model)
            load_material(spec)
    return 0


def _yield_to_runs() -> None:
    if hasattr(os, "nice"):
        os.nice(_NICE)
    with contextlib.suppress(OSError):  # Linux shares the processor out among sessions first, each with a niceness of its own
        Path("/proc/self/autogroup").write_text(str(_NICE))


def _material(spec: RunSpec) -> tuple[Any, ...]:
    """What :func:`~bitrank.models.locate` and :func:`~bitrank.material.load_material` make for ``spec``, by what it is made of."""
    return spec.model, spec.task, spec.data, spec.max_length


if __name__ == "__main__":
    sys.exit(main())
