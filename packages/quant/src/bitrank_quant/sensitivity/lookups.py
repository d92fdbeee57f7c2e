"""Look-up counts of embedding rows, and the gradients that reach the rows.

A subclass of ``nn.Embedding`` may compute ids from its inputs and change the rows after the look-up (Gemma
scales them). Therefore the look-up inside the module's forward pass is recorded, and not the module's inputs
and outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bitrank_quant.backends.reference import QuantEmbedding, kind_replaced
from bitrank_quant.sensitivity.samples import LookupSample, spread


class Lookups:
    """Statistics of one embedding table (V, D), summed over the batches.

    ``counts_V`` counts the look-ups of each row; ``column_D`` sums the squared gradients of the looked-up
    rows. Of each batch, up to ``limit`` look-ups are kept with their gradients.
    """

    def __init__(self, shape: tuple[int, int], limit: int) -> None:
        self.counts_V, self.column_D = torch.zeros(shape[0]), torch.zeros(shape[1])
        self.positions, self._limit = 0, limit
        self._kept_ids: list[Tensor] = []
        self._kept_grad: list[Tensor] = []

    def looked_up(self, ids_N: Tensor, rows: Tensor, counted: Callable[[Tensor], Tensor]) -> Tensor:
        """Count the ``ids_N`` that ``counted`` leaves; return ``rows`` as the leaf of a new autograd
        graph."""
        ids_N = counted(ids_N)
        self.counts_V += torch.bincount(ids_N.cpu(), minlength=len(self.counts_V)).float()
        self.positions += len(ids_N)
        leaf = rows.detach().requires_grad_()
        leaf.register_hook(add_squares(self.column_D))
        leaf.register_hook(lambda grad: self._keep(ids_N, counted(grad.detach().flatten(0, -2))))
        return leaf

    def _keep(self, ids_N: Tensor, grad_ND: Tensor) -> None:
        kept = spread(len(ids_N), self._limit)
        self._kept_ids.append(ids_N[kept])
        self._kept_grad.append(grad_ND[kept])

    def sample(self, units: int) -> LookupSample:
        """The kept look-ups, of a pass over ``units`` losses."""
        if not self._kept_ids:  # no gradient reaches the table
            return LookupSample(torch.zeros(0, dtype=torch.long), torch.zeros(0, len(self.column_D)), 1.0)
        ids_N, grad_ND = torch.cat(self._kept_ids), torch.cat(self._kept_grad)
        return LookupSample(ids_N, grad_ND, units * len(ids_N) / self.positions)

    def frequency_V(self) -> Tensor:
        """Share of each row in all look-ups; one extra look-up is spread over all rows, so none is zero."""
        return (self.counts_V + 1 / len(self.counts_V)) / (self.positions + 1)


@contextmanager
def watched_lookups(
    model: nn.Module, tables: Mapping[str, Lookups], counted: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Record every look-up of the embeddings named in ``tables`` while the context is open.

    ``counted`` filters the flat ids, for instance to drop padding.
    """
    modules = {name: model.get_submodule(name) for name in tables}
    before = {name: type(module) for name, module in modules.items()}
    for name, module in modules.items():
        module.__class__ = _watching(module, tables[name], counted)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name, module in modules.items():
            module.__class__ = before[name]


def _watching(
    module: nn.Embedding, lookups: Lookups, counted: Callable[[Tensor], Tensor]
) -> type[nn.Embedding]:
    """A subclass of the class of ``module`` whose ``super().forward`` records the look-up."""
    base: type[nn.Embedding] = QuantEmbedding if isinstance(module, QuantEmbedding) else nn.Embedding

    def forward(self: nn.Embedding, input: Tensor) -> Tensor:
        return lookups.looked_up(input.flatten(), base.forward(self, input), counted)

    kind = kind_replaced(module)
    look_up = type(base.__name__, (base,), {"forward": forward, "replaces": kind})
    return look_up if kind is nn.Embedding else type(kind.__name__, (kind, look_up), {})


def add_squares(total_O: Tensor) -> Callable[[Tensor], None]:
    """A gradient hook that adds the squared gradient of each column to ``total_O``."""

    def hook(grad: Tensor) -> None:
        # A norm instead of squares: it makes no copy of the gradient, which spans the vocabulary.
        norm_O = torch.linalg.vector_norm(grad.detach().flatten(0, -2), dim=0, dtype=torch.float32)
        total_O.add_(norm_O.square().cpu())

    return hook
