"""Second moments of the inputs of linear layers, E[x xᵀ], in passes without gradients.

The matrices of all layers can take more memory than the model (for each layer, inputs × inputs in fp32), so a
pass gathers no more of them than a limit allows, and there are as many passes as that takes. Layers that
share an input, as query, key and value do, compute its products once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from bitrank_quant.errors import QuantError
from bitrank_quant.matrices import WeightMatrix
from bitrank_quant.sensitivity.replay import Real, without_padding

LEAST_LIMIT = 2**30  # bytes that one pass may always gather


class _Sums:
    """Σ x xᵀ and the number of positions of each layer, of one pass."""

    def __init__(self) -> None:
        self.total_II: dict[str, Tensor] = {}
        self.positions: dict[str, int] = {}
        self.real: Sequence[Tensor] = ()  # masks (B, T) of the current batch
        self._last: tuple[Tensor, Tensor, int] | None = None

    def add(self, name: str, inputs: Tensor) -> None:
        if self._last is None or self._last[0] is not inputs:
            x_NI = without_padding(inputs.detach().flatten(0, -2), self.real).float()
            self._last = inputs, x_NI.T @ x_NI, len(x_NI)
        _, product_II, count = self._last
        if name in self.total_II:
            self.total_II[name] += product_II
        else:
            self.total_II[name] = product_II.clone()
        self.positions[name] = self.positions.get(name, 0) + count

    def begin(self, real: Sequence[Tensor]) -> None:
        """Set the masks of the next batch."""
        self.real, self._last = real, None


def input_moments(
    model: nn.Module,
    batches: Sequence[Any],
    forward: Callable[[nn.Module, Any], object],
    matrices: Sequence[WeightMatrix],
    real: Real = lambda batch: (),
) -> Iterator[dict[str, Tensor]]:
    """Yield {matrix: E[x xᵀ]} (I, I) in fp32 on the model's device, pass by pass, until all are covered.

    ``forward(model, batch)`` runs the model; ``real(batch)`` masks padding. An embedding has no inputs to
    multiply and is left out, unless a head shares its weight: then the moments are those of the head's
    inputs. A layer that no batch reaches is left out. Raises :class:`QuantError` without batches, and for
    moments that are not finite.
    """
    if not batches:
        raise QuantError("the second moments of the inputs need one calibration batch or more, got none")
    limit = max(LEAST_LIMIT, sum(parameter.nbytes for parameter in model.parameters()))
    for names in _passes(matrices, limit):
        sums = _Sums()
        with ExitStack() as hooks, torch.no_grad():
            for module, owner in names.items():
                hooks.callback(_hooked(model.get_submodule(module), sums, owner).remove)
            for batch in batches:
                sums.begin(real(batch))
                forward(model, batch)
        found = {name: total_II.div_(sums.positions[name]) for name, total_II in sums.total_II.items()}
        for name, moments_II in found.items():
            if not torch.isfinite(moments_II).all():
                raise QuantError(
                    f"the inputs of {name} on the calibration data are not finite; check weights and data"
                )
        yield found


def _passes(matrices: Sequence[WeightMatrix], limit: int) -> Iterator[dict[str, str]]:
    """{module to watch: matrix}, in groups whose moments take at most ``limit`` bytes, or one matrix."""
    names: dict[str, str] = {}
    size = 0
    for matrix in matrices:
        if matrix.role == "embedding":
            continue
        needed = 4 * matrix.shape[1] ** 2
        if names and size + needed > limit:
            yield names
            names, size = {}, 0
        names[matrix.name] = matrix.tied_to or matrix.name
        size += needed
    if names:
        yield names


def _hooked(module: nn.Module, sums: _Sums, owner: str) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
        sums.add(owner, args[0])

    return module.register_forward_pre_hook(hook)
