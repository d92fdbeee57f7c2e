"""Adapter initializations by name; :mod:`bitrank.run.adapter_init` computes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Init:
    """An initialization of adapters.

    With ``residual`` the adapter starts as the best low-rank approximation of its matrix's quantization
    error, ``weighted`` by the Fisher information or not. With ``principal`` it starts as the largest singular
    triplets of its matrix, and the rest is quantized. Otherwise its product starts at zero.
    """

    about: str
    residual: bool = False
    weighted: bool = False
    principal: bool = False

    @property
    def planned(self) -> bool:
        """Whether a planner predicts costs for this initialization: a weighted residual, or zero."""
        return self.weighted or not (self.residual or self.principal)


INITS: dict[str, Init] = {
    "default": Init("zero: B = 0, as in LoRA"),
    "loftq": Init("the residual of quantization, by LoftQ", residual=True),
    "lq-lora": Init(
        "the residual weighted by the Fisher information, by LQ-LoRA", residual=True, weighted=True
    ),
    "pissa": Init("the largest singular triplets of the matrix, by PiSSA", principal=True),
    "qera": Init("the residual that changes outputs most, by QERA and CLoQ", residual=True),
}
PLANNED_INITS = tuple(name for name, init in INITS.items() if init.planned)
