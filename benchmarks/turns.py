"""One side of a comparison step by step: the training of one plan, which waits for its turn before every step.

    python benchmarks/turns.py PLAN --task movie_sentences --steps 43 --threads 2 [--set key=value]

It prints ``{"ready": true}`` once it could train, does a step for each line that it reads, and prints the seconds of each, the making of
the next batch included. It ends where its input does. The lines of the road up to training, and the training loop, are the run's; memory
limits, validation and checkpoints are left out. :func:`in_turns` is the other end. A process for each side, not a thread: OpenMP's
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

from harness import SideFailed


def main() -> int:
    arguments = _parser().parse_args()
    with tempfile.TemporaryDirectory() as folder, suppress(Enough):
        _train(arguments, Path(folder))
    return 0


class Enough(Exception):
    """No further step was asked for."""


def each_in_turn(batches: Iterator[Any], accumulation: int) -> Iterator[Any]:
    """``batches``, of which ``accumulation`` are a step: a line is read before each step and its seconds are printed after it.

    Raises :class:`Enough` at the end of the input.
    """
    begun = 0.0
    for asked, batch in enumerate(batches):
        if asked % accumulation == 0:
            _say({"seconds": time.perf_counter() - begun} if asked else {"ready": True})
            if not sys.stdin.readline():
                raise Enough
            begun = time.perf_counter()
        yield batch


def in_turns(commands: Sequence[Sequence[str]], steps: int, environment: Mapping[str, str]) -> list[list[float]]:
    """Run Python with each of ``commands``, sides of this kind, at the same time but for their steps; the seconds of each one's steps.

    Each begins every other step. Raises :class:`SideFailed` when one ends early.
    """
    sides = [
        subprocess.Popen([sys.executable, *words], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for words in commands
    ]
    found: list[list[float]] = [[] for _ in sides]
    try:
        for side in sides:
            _heard(side)
        for step in range(steps):
            for number in range(len(sides)) if step % 2 == 0 else reversed(range(len(sides))):
                print(file=sides[number].stdin, flush=True)
                found[number].append(float(_heard(sides[number])["seconds"]))
    finally:
        for side in sides:
            side.kill()
            side.communicate()
    return found


def _heard(side: subprocess.Popen[str]) -> dict[str, Any]:
    assert side.stdout is not None
    for line in side.stdout:
        if line.startswith("{"):
            return dict(json.loads(line))
    raise SideFailed(f"a side ended with code {side.wait()}; why stands above")


def _say(figures: Mapping[str, object]) -> None:
    print(json.dumps(figures), flush=True)


def _train(arguments: argparse.Namespace, folder: Path) -> None:
    # Here, so that the other end and its tests load no torch.
    from bitrank.configs import find_config
    from bitrank.material import load_material
    from bitrank.models import fuse_model, open_model
    from bitrank.plans import make_plans, store_base
    from bitrank.profiles import find_profile
    from bitrank.schedule import settings_for
    from bitrank.specs import make_spec, parse_setting
    from bitrank.starts import starting_point
    from bitrank_trainer import DTYPES, OBJECTIVES, PLAIN_OBJECTIVES, Task, choose_device, choose_dtype, pin_threads, train

    never = arguments.steps + 1  # the loop asks for one batch more than it does steps
    given = {"steps": never, "eval_every": never, "checkpoint_every": never, "log_every": never, "threads": arguments.threads}
    given |= {"plan": arguments.plan} | dict(parse_setting(text) for text in arguments.set)
    spec = make_spec(find_profile("laptop"), "", arguments.task, given)
    device = choose_device(spec.device)
    dtype = DTYPES[choose_dtype(device) if spec.dtype == "auto" else spec.dtype]
    pin_threads(spec.threads)
    material = load_material(spec)
    loaded = open_model(spec, len(material.task.classes), device, dtype)
    config = find_config(spec.config, spec.plan, spec.tuned)
    plans = make_plans(config, loaded)
    start = starting_point(spec, plans.ranks)
    store_base(spec, loaded, plans.bits, start, device, dtype)
    settings = settings_for(spec, len(material.task.splits["train"]), device, dtype)
    model, hook = config.rank.attach(
        loaded.model, plans.ranks, total_steps=settings.steps, scale=spec.adapter_scale, heads=loaded.fresh, seed=spec.seed
    )
    model.to(device)
    start.write(model)
    if spec.fused:
        fuse_model(model)
    objective = (OBJECTIVES if spec.fused else PLAIN_OBJECTIVES)[spec.kind]
    task = Task(objective, lambda skip: each_in_turn(material.train_batches(skip), settings.accumulation), dict, device)
    train(model, task, hook, settings, folder, lambda _: None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("plan", help="a plan file")
    parser.add_argument("--task", required=True)
    parser.add_argument("--steps", type=int, required=True, help="the most that will be asked for; schedules end there")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
