"""Keep a run's process under its memory limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bitrank_trainer import Objective, Processes, TrainSettings, fitting_tokens, longest_sequence
from torch import nn

from bitrank.material import Material
from bitrank.specs import RunSpec


def within_limit(
    settings: TrainSettings,
    spec: RunSpec,
    model: nn.Module,
    objective: Objective,
    material: Material,
    device: str,
    folder: Path,
    processes: Processes,
) -> TrainSettings:
    """``settings`` with passes small enough for ``spec.memory_limit``; as they are when there is none.

    The limit is each process's own; of several the one with the least room speaks for all. What was chosen is kept in ``folder``, so
    that a resumed run cuts its batches as before and ends with the same numbers.
    """
    if spec.memory_limit is None:
        return settings
    chosen = folder / "micro_tokens.txt"
    if not processes.told(chosen.exists()):
        longest = longest_sequence(material.train_batches(0), spec.max_length)
        tokens = min(processes.gather(fitting_tokens(model, objective, longest, device, spec.memory_limit)))
        if processes.first:
            chosen.write_text(str(tokens))
        processes.wait()
    return replace(settings, micro_tokens=int(chosen.read_text()))
