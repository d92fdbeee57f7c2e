"""Adapter initializations by name; :mod:`bitrank.run.adapter_init` computes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Init:
    """An initialization of adapters.

    With ``residual`` the adapter starts as the best low-rank approximation of its matrix's quantization
    error, ``weighted`` by the Fisher information or not. With ``splits`` it starts as a part of its matrix,
    of which the rest is quantized. With ``allocates`` the start chooses the ranks too, whose adapters have at
    most as many numbers as those of the rank rule. Otherwise its product starts at zero.
    """

    about: str
    residual: bool = False
    weighted: bool = False
    splits: bool = False
    allocates: bool = False

    @property
    def planned(self) -> bool:
        """Whether a planner predicts costs for this initialization: a weighted residual, or zero."""
        return self.weighted or not (self.residual or self.splits or self.allocates)


INITS: dict[str, Init] = {
    "default": Init("PEFT's start, B = 0, as in LoRA"),
    "loftq": Init("the residual of quantization, by LoftQ", residual=True),
    "lq-lora": Init(
        "the residual weighted by the Fisher information, by LQ-LoRA", residual=True, weighted=True
    ),
    "pissa": Init("the largest singular triplets of the matrix, by PiSSA", splits=True),
    "qera": Init("the residual that changes outputs most, by QERA and CLoQ", residual=True),
    "corda": Init("the directions of the matrix with the largest outputs, by CorDA", splits=True),
    "lora-ga": Init("singular vectors of the gradient, taken out of the matrix, by LoRA-GA", splits=True),
    "eva": Init("principal components of the inputs; ranks by variance, by EVA", allocates=True),
    "gora": Init("a step along the gradient; ranks by importance, by GoRA", allocates=True),
}
PLANNED_INITS = tuple(name for name, init in INITS.items() if init.planned)
