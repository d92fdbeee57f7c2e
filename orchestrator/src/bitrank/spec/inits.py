"""How adapters may start, by name; :mod:`bitrank.run.adapter_init` computes the starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Init:
    """``residual``: the adapter starts as the best repair of its matrix's quantization error, ``weighted`` by
    the Fisher information or not; otherwise it starts as zero."""

    about: str
    residual: bool = False
    weighted: bool = False

    @property
    def planned(self) -> bool:
        """Whether predicted costs describe this start: they assume a weighted repair, or none."""
        return self.weighted or not self.residual


INITS: dict[str, Init] = {
    "default": Init("zero: B = 0, as in LoRA"),
    "loftq": Init("the residual of quantization, by LoftQ", residual=True),
    "lq-lora": Init(
        "the residual weighted by the Fisher information, by LQ-LoRA", residual=True, weighted=True
    ),
}
PLANNED_INITS = tuple(name for name, init in INITS.items() if init.planned)
