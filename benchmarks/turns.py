"""One side of a step-by-step comparison: trains a plan or config, and waits for a line before every step.

    python benchmarks/turns.py PLAN --task movie_sentences --steps 43 --threads 2 [--set key=value]
    python benchmarks/turns.py --config Joint-2 --task movie_sentences --steps 43 --threads 2

It prints ``{"ready": true}`` when training can begin, executes one step per input line, and prints the
seconds and tokens of each, including the construction of the next batch, and the peaks of memory. It ends at
the end of its input. The training is that of ``paced.py``; :func:`in_turns` controls the sides. Each side is
a process instead of a thread: with two OpenMP pools in one process, threads hardly wait for the next product
before they sleep.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness import WARM_UP, Figures, SideFailed


def main() -> int:
    from paced import paced_spec, train_paced  # imported late: the controlling side needs no torch

    arguments = _parser().parse_args()
    with tempfile.TemporaryDirectory() as folder, suppress(InputEnded):
        train_paced(paced_spec(arguments), Path(folder), each_in_turn)
    return 0


_PAUSE_S = 0.05  # enough for the other side's spinning OpenMP threads to go to sleep


class InputEnded(Exception):
    """The input has ended: no further step was requested."""


def each_in_turn(batches: Iterator[Any], accumulation: int) -> Iterator[Any]:
    """Yield ``batches``, ``accumulation`` per step; read a line before each step, print its time after.

    Raises :class:`InputEnded` at the end of the input.
    """
    turn = Turn()
    for number, batch in enumerate(batches):
        if number % accumulation == 0:
            turn.over() if number else turn.ready()
        turn.tokens += int(batch["attention_mask"].sum())
        yield batch


class Turn:
    """Waits before each step, and prints its seconds and tokens."""

    def __init__(self) -> None:
        self.tokens, self._begun = 0, 0.0

    def ready(self) -> None:
        """Report that the first step can begin, and wait for it."""
        _print_figures({"ready": True})
        self._wait()

    def over(self) -> None:
        """Report the step, and wait for the next. Raises :class:`InputEnded` at the end of the input."""
        _finish_device()
        seconds = time.perf_counter() - self._begun
        _print_figures({"seconds": seconds, "tokens": self.tokens, **_memory()})
        self._wait()

    def _wait(self) -> None:
        if not sys.stdin.readline():
            raise InputEnded
        self.tokens, self._begun = 0, time.perf_counter()


def _finish_device() -> None:
    """Wait for the work of a GPU."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _memory() -> dict[str, float]:
    """Peak memory so far of the accelerator and of the process, in MiB."""
    from bitrank_trainer import choose_device, device_memory_mib, peak_memory_mib

    return {"device_mib": device_memory_mib(choose_device()), "peak_mib": peak_memory_mib()}


def parse_step_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse and check the arguments of a step-by-step comparison: quartiles need two counted steps."""
    arguments = parser.parse_args()
    if arguments.steps and arguments.steps < WARM_UP + 2:
        parser.error(
            f"--steps {arguments.steps}: quartiles need two steps or more after {WARM_UP} for warming up"
        )
    return arguments


def in_turns(
    commands: Sequence[Sequence[str]], steps: int, environments: Sequence[Mapping[str, str]]
) -> list[list[Figures]]:
    """Run Python with each of ``commands`` and let them execute ``steps`` steps alternately.

    Each side has its own environment. Returns ``seconds``, ``tokens`` and the peaks of memory of each side's
    steps. Raises :class:`SideFailed` if one ends early.
    """
    with Sides(commands, environments) as sides:
        for failure in sides.wait().values():
            raise failure
        rounds = [sides.step(number) for number in range(steps)]
    return [[figures[side] for figures in rounds] for side in range(len(commands))]


class Sides:
    """The processes of a step-by-step comparison, numbered as given; killed at the end of the context."""

    def __init__(self, commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]]) -> None:
        self._sides = {
            number: subprocess.Popen(
                [sys.executable, *command],
                env=environment,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for number, (command, environment) in enumerate(zip(commands, environments, strict=True))
        }

    def __enter__(self) -> Sides:
        return self

    def __exit__(self, *_: object) -> None:
        for side in self._sides.values():
            side.kill()
            side.communicate()

    def wait(self) -> dict[int, SideFailed]:
        """Wait until every side is ready; return the failures, whose sides take no turns."""
        failed = {}
        for number, side in list(self._sides.items()):
            try:
                _read_figures(side)
            except SideFailed as failure:
                failed[number] = failure
                del self._sides[number]
        return failed

    def step(self, number: int) -> dict[int, Figures]:
        """One step of every side; every other step begins with another side."""
        found = {}
        for side in list(self._sides) if number % 2 == 0 else list(self._sides)[::-1]:
            time.sleep(_PAUSE_S)
            print(file=self._sides[side].stdin, flush=True)
            found[side] = _read_figures(self._sides[side])
        return found


def _read_figures(side: subprocess.Popen[str]) -> Figures:
    assert side.stdout is not None
    for line in side.stdout:
        if line.startswith("{"):
            return dict(json.loads(line))
    raise SideFailed(f"a side ended with code {side.wait()}; the reason is printed above")


def _print_figures(figures: Mapping[str, object]) -> None:
    print(json.dumps(figures), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("plan", nargs="?", help="a plan file")
    parser.add_argument("--config", default="", help="a config instead of a plan")
    parser.add_argument("--task", required=True)
    parser.add_argument("--model", help="instead of the task's model")
    parser.add_argument(
        "--steps", type=int, required=True, help="highest number of steps; schedules end there"
    )
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
