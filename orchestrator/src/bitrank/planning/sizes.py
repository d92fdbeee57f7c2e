"""Bytes that a plan's choices take in the model of a run, by shapes alone: equal to what the built model will hold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from bitrank_quant import WeightMatrix
from bitrank_trainer import DTYPES, choose_device, choose_dtype

from bitrank.configs import Config
from bitrank.held import held_bytes
from bitrank.material import tokenised
from bitrank.models import locate
from bitrank.outline import Outline, outline
from bitrank.specs import RunSpec

ADAPTER_BYTES = 4  # per number: adapters are trained and saved in fp32


@dataclass(frozen=True)
class Sizes:
    """Sizes in the model that ``outline`` describes, on ``device``, with formats as ``quant_backend`` makes them."""

    outline: Outline
    quant_backend: str
    device: str
    dtype: str

    @property
    def parameters(self) -> int:
        """Numbers of the base; shared ones once."""
        return self.outline.parameters

    @property
    def fixed(self) -> int:
        """Bytes that no plan changes: norms, biases, buffers, and the trained copies of fresh heads."""
        return self.outline.fixed + ADAPTER_BYTES * self.outline.trained

    @cached_property
    def matrices(self) -> dict[str, WeightMatrix]:
        return {matrix.name: matrix for matrix in self.outline.matrices}

    def of_matrix(self, name: str, fmt: str, rank: int) -> int:
        """Codes, scales and adapter of one matrix."""
        matrix = self.matrices[name]
        words = {"quant_backend": self.quant_backend, "device": self.device, "dtype": DTYPES[self.dtype]}
        held = held_bytes(matrix, fmt, **words, shared=name in self.outline.shared)  # type: ignore[arg-type]
        return held + ADAPTER_BYTES * rank * sum(matrix.shape)

    def of_config(self, config: Config) -> int:
        """The whole model as ``config`` would store it, with the adapters it starts with."""
        blocks = [matrix for matrix in self.outline.matrices if matrix.adaptable]
        bits, ranks = config.precision.bits(self.outline.matrices), config.rank.ranks(blocks)
        return self.fixed + sum(self.of_matrix(name, bits[name], ranks.get(name, 0)) for name in self.matrices)


def sizes_of(spec: RunSpec) -> Sizes:
    """The sizes in the model of ``spec``. Its ``config.json`` is read, no weight."""
    device = choose_device(spec.device)
    dtype = choose_dtype(device) if spec.dtype == "auto" else spec.dtype
    classes = len(tokenised(spec).classes)
    return Sizes(outline(locate(spec.model), spec.kind, classes, DTYPES[dtype]), spec.quant_backend, device, dtype)
