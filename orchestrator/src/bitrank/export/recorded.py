"""What a run recorded about itself, compared with the model that an export rebuilds.

The base is made again, from data of the start, libraries and hardware that may have changed since. If it is
not the base that the adapter was trained on, the validation loss shows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from bitrank.process.events import read_events
from bitrank.process.run_folder import result_of

_TOLERANCE = 0.02  # of the run's loss: other hardware and dtypes change it less
_LEAST = 0.005  # nats


def differences(home: Path, dtype: str, metrics: Mapping[str, float]) -> list[str]:
    """Sentences on what differs from the run in ``home``: its dtype and its validation loss.

    ``dtype`` and ``metrics`` are those of the rebuilt model. Empty where the run's folder does not have the
    run's own; the store's artifacts lack its events.
    """
    return [*_dtype(home, dtype), *_loss(home, metrics["loss"])]


def _dtype(home: Path, here: str) -> Iterator[str]:
    there = {event["tags"].get("dtype") for event in read_events(home / "events.jsonl") if _is_machine(event)}
    if there and here not in there:
        yield (
            f"the run computed in {', '.join(sorted(map(str, there)))} and this machine in {here}, which the "
            "spec leaves to the machine; export on a machine of the run's kind if the losses differ"
        )


def _loss(home: Path, here: float) -> Iterator[str]:
    best = (result_of(home) or {}).get("train/best_step")
    losses = [
        event["metrics"]["val/loss"]
        for event in read_events(home / "events.jsonl")
        if event["event"] == "validation" and event["step"] == best
    ]
    # A comparison with NaN is false.
    if losses and not abs(here - losses[-1]) <= max(_LEAST, _TOLERANCE * abs(losses[-1])):
        yield (
            f"the rebuilt model has a validation loss of {here:.4f}, and its run had {losses[-1]:.4f} at "
            f"step {best:g}: the base is not the one that the adapter was trained on, because data of the "
            "start, code, libraries or hardware have changed; repeat the run with --force and export that"
        )


def _is_machine(event: Mapping[str, object]) -> bool:
    return event["event"] == "machine" and isinstance(event.get("tags"), Mapping)
