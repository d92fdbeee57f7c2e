"""Compute from shapes the bytes that a plan's choices take in the model of a run.

The result equals the count in the built model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property

from bitrank_quant import WeightMatrix
from bitrank_trainer import DTYPES

from bitrank.errors import UserError, shortened, unknown
from bitrank.forecast.model_shapes import ModelShapes, model_shapes
from bitrank.forecast.stored_size import Storage, stored_size
from bitrank.models.locate import locate
from bitrank.models.tokens import tokenised
from bitrank.planning.kept_ranks import ADAPTER_BYTES, adapter_bytes
from bitrank.process.compute import Compute
from bitrank.spec.configs import CONFIGS, Config, find_config
from bitrank.spec.parse import parse_bytes
from bitrank.spec.run_spec import RunSpec

NOTHING_TRAINS = (
    "the plan has rank 0 everywhere: no matrix gets an adapter and nothing would be trained; offer ranks "
    "above 0, such as --ranks 2,4,8,16,32, or give a larger budget"
)


@dataclass(frozen=True)
class Sizes:
    """Sizes in the model that ``outline`` describes.

    The model is on ``device``; ``quant_backend`` implements the formats. ``coded``: a quantizer gives the
    codes, in place of rounding by each backend.
    """

    outline: ModelShapes
    quant_backend: str
    device: str
    dtype: str
    coded: bool = False

    @property
    def parameters(self) -> int:
        """The base model's number of parameters; shared ones count once."""
        return self.outline.parameters

    @property
    def fixed(self) -> int:
        """Bytes that no plan changes: norms, biases, buffers, and the trained copies of new heads."""
        return self.outline.fixed + ADAPTER_BYTES * self.outline.trained

    @cached_property
    def matrices(self) -> dict[str, WeightMatrix]:
        return {matrix.name: matrix for matrix in self.outline.matrices}

    def of_matrix(self, name: str, fmt: str, rank: int) -> int:
        """Return the bytes of one matrix: codes, scales and adapter."""
        matrix = self.matrices[name]
        storage = Storage(self.quant_backend, self.device, DTYPES[self.dtype], self.coded)
        stored = stored_size(matrix, fmt, storage, shared=name in self.outline.shared)
        return stored + ADAPTER_BYTES * rank * sum(matrix.shape)

    def of_config(self, config: Config) -> int:
        """Return the bytes of the whole model in the formats of ``config``, with the ranks that remain."""
        blocks = [matrix for matrix in self.outline.matrices if matrix.adaptable]
        bits = config.precision.assign_formats(self.outline.matrices)
        weights = sum(self.of_matrix(name, bits[name], 0) for name in self.matrices)
        return self.fixed + weights + adapter_bytes(config.rank, blocks)


def sizes_of(spec: RunSpec) -> Sizes:
    """Return the sizes in the model of ``spec``. Its ``config.json`` is read, no weight."""
    compute = Compute.of(spec)
    device, dtype = compute.device, compute.dtype_name
    classes = len(tokenised(spec).classes)
    return Sizes(
        model_shapes(locate(spec.model_source), spec.kind, classes, DTYPES[dtype]),
        spec.quant_backend,
        device,
        dtype,
        spec.quantizer != RunSpec.quantizer,
    )


def counted_with(sizes: Sizes, quantizer: str) -> Sizes:
    """``sizes`` for matrices whose codes ``quantizer`` gives."""
    return replace(sizes, coded=quantizer != RunSpec.quantizer)


def parse_budget(text: str, sizes: Sizes) -> int:
    """Return the number of bytes that ``text`` denotes. Raises :class:`UserError` if it denotes none."""
    if text.startswith("="):
        name = text[1:]
        if name not in CONFIGS:
            raise unknown("config", name, CONFIGS, "; a budget like =B-Q4 takes the bytes of a config")
        config = find_config(name)
        quantizer = config.settings.get("quantizer", RunSpec.quantizer)
        return counted_with(sizes, quantizer).of_config(config)  # as the config's own run stores it
    if match := re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,20})?)\s*bits?\s*", text, re.ASCII):
        return int(float(match[1]) * sizes.parameters / 8)
    try:
        return parse_bytes(text)
    except UserError:
        raise UserError(f"expected a budget such as 20MB, 4.25bits or =B-Q4, got {shortened(text)}") from None
