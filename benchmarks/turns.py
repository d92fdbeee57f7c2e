"""One side of a comparison step by step: the training of one plan or config, which waits for its turn before
every step.

    python benchmarks/turns.py PLAN --task movie_sentences --steps 43 --threads 2 [--set key=value]     # or --config Joint-2

It prints ``{"ready": true}`` once it could train, does a step for each line that it reads, and prints the
seconds and real tokens of each, the making of the next batch included. It ends where its input does. The
training is ``paced.py``'s; :func:`in_turns` is the other end. A process for each side, not a thread: OpenMP's
threads of two pools in one process hardly wait for the next product before they sleep.
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
    from paced import paced_spec, train_paced  # here, so that the other end and its tests load no torch

    arguments = _parser().parse_args()
    with tempfile.TemporaryDirectory() as folder, suppress(Enough):
        train_paced(paced_spec(arguments), Path(folder), each_in_turn)
    return 0


_PAUSE_S = 0.05  # threads of the other side that spin for a next product have gone to sleep by then


class Enough(Exception):
    """No further step was asked for."""


def each_in_turn(batches: Iterator[Any], accumulation: int) -> Iterator[Any]:
    """``batches``, of which ``accumulation`` are a step: a line is read before each step and its seconds are
    printed after it.

    Raises :class:`Enough` at the end of the input.
    """
    turn = Turn()
    for number, batch in enumerate(batches):
        if number % accumulation == 0:
            turn.over() if number else turn.ready()
        turn.tokens += int(batch["attention_mask"].sum())
        yield batch


class Turn:
    """A step that waits until it is asked for, and tells its seconds and tokens."""

    def __init__(self) -> None:
        self.tokens, self._begun = 0, 0.0

    def ready(self) -> None:
        """Say that the first step could be done, and wait for it."""
        _say({"ready": True})
        self._wait()

    def over(self) -> None:
        """Say what the step was, and wait for the next. Raises :class:`Enough` at the end of the input."""
        _say({"seconds": time.perf_counter() - self._begun, "tokens": self.tokens})
        self._wait()

    def _wait(self) -> None:
        if not sys.stdin.readline():
            raise Enough
        self.tokens, self._begun = 0, time.perf_counter()


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments of a script whose sides take turns: quartiles need two counted steps or more."""
    arguments = parser.parse_args()
    if arguments.steps and arguments.steps < WARM_UP + 2:
        parser.error(
            f"--steps {arguments.steps}: quartiles need two steps or more after {WARM_UP} for warming up"
        )
    return arguments


def in_turns(
    commands: Sequence[Sequence[str]], steps: int, environments: Sequence[Mapping[str, str]]
) -> list[list[Figures]]:
    """Run Python with each of ``commands``, sides of this kind, at the same time but for their steps;
    ``seconds`` and ``tokens`` of each one's steps. Each has its environment, and begins every other step.
    Raises :class:`SideFailed` when one ends early.
    """
    sides = [
        subprocess.Popen(
            [sys.executable, *words],
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for words, environment in zip(commands, environments, strict=True)
    ]
    found: list[list[Figures]] = [[] for _ in sides]
    try:
        for side in sides:
            _heard(side)
        for step in range(steps):
            for number in range(len(sides)) if step % 2 == 0 else reversed(range(len(sides))):
                time.sleep(_PAUSE_S)
                print(file=sides[number].stdin, flush=True)
                found[number].append(_heard(sides[number]))
    finally:
        for side in sides:
            side.kill()
            side.communicate()
    return found


def _heard(side: subprocess.Popen[str]) -> Figures:
    assert side.stdout is not None
    for line in side.stdout:
        if line.startswith("{"):
            return dict(json.loads(line))
    raise SideFailed(f"a side ended with code {side.wait()}; why stands above")


def _say(figures: Mapping[str, object]) -> None:
    print(json.dumps(figures), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("plan", nargs="?", help="a plan file")
    parser.add_argument("--config", default="", help="a config instead of a plan")
    parser.add_argument("--task", required=True)
    parser.add_argument(
        "--steps", type=int, required=True, help="the most that will be asked for; schedules end there"
    )
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
