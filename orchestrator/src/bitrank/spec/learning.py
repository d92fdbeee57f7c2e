"""Ways to add what rank learns to a plan's costs, by name; :mod:`bitrank.planning.learning` computes them."""

from __future__ import annotations

from dataclasses import dataclass

from bitrank.errors import unknown


@dataclass(frozen=True)
class LearningCost:
    """``trains``: the costs depend on a training, and so on its settings."""

    about: str
    trains: bool = False


LEARNING: dict[str, LearningCost] = {
    "none": LearningCost("costs are of quantization and repair alone"),
    "probe": LearningCost("a short training at rank 32 measures what each rank learns", trains=True),
}


def learning_cost(name: str) -> LearningCost:
    """Entry ``name`` of :data:`LEARNING`. Raises :class:`~bitrank.errors.UserError` for another name."""
    if name not in LEARNING:
        raise unknown("learning cost", name, LEARNING)
    return LEARNING[name]
