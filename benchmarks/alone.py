"""Time one training step, and each of its operations alone; prints one JSON line of figures.

    python benchmarks/alone.py --config B-FP --task movie_sentences --threads 2 [--set key=value]

Training repeats one batch of median size, which gives the time of a step. One step then records every torch
operation, and every call of a compiled decoder or row pass, with its tensors. Each recorded call is repeated
several times, of which the fastest counts, minus the time of an operation that does nothing: caches are warm
and no Python overhead is included. All calls are also replayed once in the order of the step, with the cache
state of that order. Finally a step of one row of 8 tokens measures the fixed cost of a step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import torch
from bitrank.models import fuse
from bitrank_quant import decoder
from paced import paced_spec, train_paced
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from turns import InputEnded

_DRAWN, _WARM_UP, _STEPS, _TRIES = 15, 4, 12, 4
_SMALL = (1, 8)  # rows and tokens of the smallest step
_PRODUCTS = ("mm", "addmm", "addmm_")
KINDS = ("base", "thin", "attention", "decoding", "rows", "rest")
_COMPILED = fuse.ROWS
Call = tuple[str, Callable[[], object]]


class OperationRecorder(TorchDispatchMode):
    """Records, while active, each operation that computes or copies, with its tensors and kind."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._bases: set[int] = set()
        self._recording = self._within = False

    def __enter__(self) -> Self:
        self._recording = True
        entered: Self = super().__enter__()
        return entered

    def __exit__(self, *reason: object) -> None:
        self._recording = False
        super().__exit__(*reason)

    def decoder(self, layer: Any) -> Callable[[], Tensor] | None:
        """The decoder of ``layer``, whose calls are recorded as single operations."""
        decode = decoder(layer)
        if decode is None:
            return None

        def decode_recorded() -> Tensor:
            weight_OI: Tensor = self.record("decoding", decode)
            self._bases.add(weight_OI.untyped_storage().data_ptr())
            return weight_OI

        return decode_recorded

    def record(self, kind: str, call: Callable[[], Any]) -> Any:
        """Call ``call`` and record it as one operation, without the operations inside it."""
        if not self._recording:
            return call()
        self.calls.append((kind, call))
        self._within = True
        try:
            return call()
        finally:
            self._within = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if not self._within and computes(func):
            self.calls.append((self._kind(func, args), lambda: func(*args, **named)))
        return func(*args, **named)

    def _kind(self, func: Any, args: Any) -> str:
        name = func.overloadpacket.__name__
        if name == "bmm":
            return "attention"
        if name not in _PRODUCTS:
            return "rest"
        is_base = any(isinstance(a, Tensor) and a.untyped_storage().data_ptr() in self._bases for a in args)
        return "base" if is_base else "thin"


class RecordedRows:
    """The compiled row passes, each recorded as a single operation."""

    def __init__(self, recorder: OperationRecorder) -> None:
        self._recorder = recorder

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(_COMPILED, name)
        if name == "serves":
            return function  # type: ignore[no-any-return]
        return lambda *args, **named: self._recorder.record("rows", lambda: function(*args, **named))


def computes(func: Any) -> bool:
    """Whether ``func`` computes or copies numbers, unlike views and allocations."""
    return (
        not func.is_view
        and torch.Tag.inplace_view not in func.tags
        and not func.overloadpacket.__name__.startswith(("empty", "new_empty", "_unsafe_view", "detach"))
    )


def alone(calls: list[Call]) -> dict[str, float]:
    """Seconds of each kind: the sum over ``calls`` of the fastest of several repeats, minus an empty call."""
    nothing = torch.zeros(())
    empty = _fastest(lambda: torch.ops.aten.alias.default(nothing))
    found = dict.fromkeys(KINDS, 0.0)
    with torch.no_grad():
        for kind, call in calls:
            found[kind] += max(0.0, _fastest(call) - empty)
    return found


def in_order(calls: list[Call]) -> float:
    """Median seconds of all ``calls`` replayed once in order, without Python code in between."""
    found = []
    with torch.no_grad():
        for _ in range(_TRIES + 1):
            started = time.perf_counter()
            for _, call in calls:
                call()
            found.append(time.perf_counter() - started)
    return statistics.median(found)


def _fastest(call: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(_TRIES):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best


def stages(batches: Iterator[Any], recorder: OperationRecorder, figures: dict[str, Any]) -> Iterator[Any]:
    """The batches of the measured training, in the stages that the module describes.

    Raises :class:`InputEnded` after the last one.
    """
    drawn = sorted((next(batches) for _ in range(_DRAWN)), key=lambda batch: batch["input_ids"].size)
    median_batch = drawn[len(drawn) // 2]
    rows, width = _SMALL
    small = {
        key: value[:rows, :width] if value.ndim > 1 else value[:rows] for key, value in median_batch.items()
    }
    figures |= {
        "tokens": int(median_batch["attention_mask"].sum()),
        "rows": len(median_batch["input_ids"]),
        "width": median_batch["input_ids"].shape[1],
    }
    yield from _timed(median_batch, figures, "step_s")
    with recorder:
        yield median_batch
    yield from _timed(small, figures, "small_s")
    raise InputEnded


def _timed(batch: Any, figures: dict[str, Any], name: str) -> Iterator[Any]:
    found = []
    for _ in range(_WARM_UP + _STEPS):
        started = time.perf_counter()
        yield batch
        found.append(time.perf_counter() - started)
    figures[name] = statistics.median(found[_WARM_UP:])


def main() -> int:
    arguments = _parser().parse_args()
    arguments.steps = 2 * (_WARM_UP + _STEPS) + 1
    spec = paced_spec(arguments)
    recorder, figures = OperationRecorder(), dict[str, Any]()
    fuse.ROWS = RecordedRows(recorder)  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder, suppress(InputEnded):
        train_paced(
            spec, Path(folder), lambda batches, _: stages(batches, recorder, figures), recorder.decoder
        )
    figures["ordered_s"] = in_order(recorder.calls)
    figures |= {f"{kind}_s": seconds for kind, seconds in alone(recorder.calls).items()}
    figures |= {"alone_s": sum(figures[f"{kind}_s"] for kind in KINDS), "calls": len(recorder.calls)}
    print(json.dumps({**figures, "called": Counter(kind for kind, _ in recorder.calls)}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
