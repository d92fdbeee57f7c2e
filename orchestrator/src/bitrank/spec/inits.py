"""Adapter initializations by name; :mod:`bitrank.run.adapter_init` computes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SENSITIVITIES, INPUTS, GRADIENTS = "sensitivities", "inputs", "gradients"  # data that starts read
COMPONENTS = 128  # principal components of each matrix's inputs that are kept


@dataclass(frozen=True)
class Init:
    """An initialization of adapters.

    With ``residual`` the adapter starts as the best low-rank approximation of its matrix's quantization
    error. With ``splits`` it starts as a part of its matrix, of which the rest is quantized. With
    ``allocates`` the start chooses the ranks too, whose adapters have at most as many numbers as those of the
    rank rule. Otherwise its product starts at zero.

    ``reads`` names what the start reads of the run's training data: the sensitivity measurement, second
    moments of inputs, or gradients and principal components of inputs. A rank takes ``per_rank`` directions,
    of which a matrix has as many as its smaller side, and at most ``directions``.
    """

    about: str
    residual: bool = False
    splits: bool = False
    allocates: bool = False
    reads: str | None = None
    per_rank: int = 1
    directions: int | None = None

    @property
    def weighted(self) -> bool:
        """Whether the Fisher information of the sensitivity measurement weights the residual."""
        return self.reads == SENSITIVITIES

    @property
    def planned(self) -> bool:
        """Whether a planner predicts costs for this initialization: a weighted residual, or zero."""
        return self.weighted or not (self.residual or self.splits or self.allocates)

    def largest_rank(self, shape: Sequence[int]) -> int:
        """The largest rank of a matrix of ``shape`` (out, in) for which the start has directions."""
        known = min(shape) if self.directions is None else min(*shape, self.directions)
        return known // self.per_rank


INITS: dict[str, Init] = {
    "default": Init("PEFT's start, B = 0, as in LoRA"),
    "loftq": Init("the residual of quantization, by LoftQ", residual=True),
    "lq-lora": Init(
        "the residual weighted by the Fisher information, by LQ-LoRA", residual=True, reads=SENSITIVITIES
    ),
    "pissa": Init("the largest singular triplets of the matrix, by PiSSA", splits=True),
    "qera": Init("the residual that changes outputs most, by QERA and CLoQ", residual=True, reads=INPUTS),
    "corda": Init(
        "the directions of the matrix with the largest outputs, by CorDA", splits=True, reads=INPUTS
    ),
    "lora-ga": Init(
        "singular vectors of the gradient, taken out of the matrix, by LoRA-GA",
        splits=True,
        reads=GRADIENTS,
        per_rank=2,  # A and B are of different ones
    ),
    "eva": Init(
        "principal components of the inputs; ranks by variance, by EVA",
        allocates=True,
        reads=GRADIENTS,
        per_rank=2,  # a matrix may get twice its rank
        directions=COMPONENTS,
    ),
    "gora": Init("a step along the gradient; ranks by importance, by GoRA", allocates=True, reads=GRADIENTS),
}
PLANNED_INITS = tuple(name for name, init in INITS.items() if init.planned)
