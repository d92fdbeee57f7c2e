"""Two plans trained in turns within one process, a step each on the same batches; one JSON line with the seconds of every step.

    python benchmarks/turns.py PLAN OTHER --task movie_sentences --steps 33 --threads 2 [--set key=value] [--set-other key=value]

A machine whose speed drifts from one run to the next drifts for both here. The lines of the road up to training, and the training loop
itself, are the run's; the loops of the two models have a thread each, of which one goes on at a time: they change places where a loop asks
for its next batch.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from bitrank.configs import find_config
from bitrank.material import load_material
from bitrank.models import fuse_model, open_model
from bitrank.plans import make_plans, store_base
from bitrank.profiles import find_profile
from bitrank.schedule import settings_for
from bitrank.specs import RunSpec, make_spec, parse_setting
from bitrank.starts import starting_point
from bitrank_data import Batch
from bitrank_trainer import DTYPES, OBJECTIVES, Task, choose_device, choose_dtype, pin_threads, train


def main() -> int:
    arguments = _parser().parse_args()
    plans, settings = (arguments.plan, arguments.other), (arguments.set, arguments.set_other)
    with tempfile.TemporaryDirectory() as folder:
        turns = Turns(len(plans))
        loops = [
            Loop(number, _spec(plan, words, arguments), arguments.steps, turns, Path(folder) / str(number))
            for number, (plan, words) in enumerate(zip(plans, settings, strict=True))
        ]
        with ThreadPoolExecutor(len(loops)) as threads:
            for done in [threads.submit(loop.run) for loop in loops]:
                done.result()
    print(json.dumps({"seconds": loops[0].seconds, "other": loops[1].seconds}))
    return 0


class Turns:
    """One of some threads goes on at a time."""

    def __init__(self, count: int) -> None:
        self._waiting = list(range(count))  # the first of them has the turn
        self._changed = threading.Condition()

    def take(self, who: int) -> None:
        """Wait for the turn of ``who``."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting[0] == who)

    def give(self, who: int) -> None:
        """Let the others go on, and wait for the next turn."""
        with self._changed:
            self._waiting.append(self._waiting.pop(0))
            self._changed.notify_all()
        self.take(who)

    def leave(self, who: int) -> None:
        """Take no more turns."""
        with self._changed:
            self._waiting.remove(who)
            self._changed.notify_all()


class _Enough(Exception):
    """All steps that were asked for are done."""


class Loop:
    """The training of one model in turns with others; ``seconds`` of each of its steps, its batch included, the waiting not."""

    def __init__(self, number: int, spec: RunSpec, steps: int, turns: Turns, folder: Path) -> None:
        self.seconds: list[float] = []
        self._number, self._spec, self._steps, self._turns, self._folder = number, spec, steps, turns, folder

    def run(self) -> None:
        self._turns.take(self._number)
        try:
            with suppress(_Enough):
                self._train()
        finally:
            self._turns.leave(self._number)

    def _train(self) -> None:
        spec, device = self._spec, choose_device(self._spec.device)
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
        fuse_model(model)

        def batches(skip: int) -> Iterator[Batch]:
            return self._in_turns(material.train_batches(skip), settings.accumulation)

        train(model, Task(OBJECTIVES[spec.kind], batches, dict, device), hook, settings, self._folder, lambda _: None)

    def _in_turns(self, batches: Iterator[Batch], accumulation: int) -> Iterator[Batch]:
        begun = 0.0
        for asked, batch in enumerate(batches):
            if asked % accumulation == 0:
                if asked:
                    self.seconds.append(time.perf_counter() - begun)
                if len(self.seconds) == self._steps:
                    raise _Enough
                self._turns.give(self._number)
                begun = time.perf_counter()
            yield batch


def _spec(plan: str, words: list[str], arguments: argparse.Namespace) -> RunSpec:
    more = arguments.steps + 1  # the loop asks once more after the last step that counts
    given = {"steps": more, "eval_every": more, "checkpoint_every": more, "log_every": more, "threads": arguments.threads, "plan": plan}
    return make_spec(find_profile("laptop"), "", arguments.task, given | dict(parse_setting(text) for text in words))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("plan", help="a plan file")
    parser.add_argument("other", help="another")
    parser.add_argument("--task", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the first")
    parser.add_argument("--set-other", action="append", default=[], metavar="KEY=VALUE", help="a setting of the other")
    return parser


if __name__ == "__main__":
    sys.exit(main())
