"""What an embedding looks up: which rows, and the gradients that reach them.

A subclass of ``nn.Embedding`` may make ids of its inputs and change the rows it looked up (Gemma scales
them). So the look-up itself is watched, inside the module's forward pass, and not what goes into the module
or comes out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bitrank_quant.backends.reference import QuantEmbedding, kind_replaced


class Lookups:
    """What one table gathers over the batches: how often each row is looked up, and the squared gradients of
    what comes out."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.counts_V, self.column_D = torch.zeros(shape[0]), torch.zeros(shape[1])
        self.positions = 0

    def looked_up(self, ids_N: Tensor, rows: Tensor) -> Tensor:
        """Count ``ids_N``; ``rows``, where a graph begins."""
        self.counts_V += torch.bincount(ids_N.cpu(), minlength=len(self.counts_V)).float()
        self.positions += len(ids_N)
        leaf = rows.detach().requires_grad_()
        leaf.register_hook(add_squares(self.column_D))
        return leaf

    def frequency_V(self) -> Tensor:
        """The share of each row in all lookups, one more lookup being spread over all rows."""
        return (self.counts_V + 1 / len(self.counts_V)) / (self.positions + 1)


@contextmanager
def watched_lookups(
    model: nn.Module, tables: Mapping[str, Lookups], counted: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Inside, the embeddings named in ``tables`` give every look-up to their :class:`Lookups`. ``counted``
    picks those of the flat ids that count: all but padding.
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
    """The class of ``module`` with a watched look-up under its ``super().forward``."""
    base: type[nn.Embedding] = QuantEmbedding if isinstance(module, QuantEmbedding) else nn.Embedding

    def forward(self: nn.Embedding, input: Tensor) -> Tensor:
        return lookups.looked_up(counted(input.flatten()), base.forward(self, input))

    kind = kind_replaced(module)
    look_up = type(base.__name__, (base,), {"forward": forward, "replaces": kind})
    return look_up if kind is nn.Embedding else type(kind.__name__, (kind, look_up), {})


def add_squares(total_O: Tensor) -> Callable[[Tensor], None]:
    """A gradient hook that adds the squares of each column to ``total_O``. It gives nothing back: the
    gradient stays what it is."""

    def hook(grad: Tensor) -> None:
        norm_O = torch.linalg.vector_norm(
            grad.detach().flatten(0, -2), dim=0, dtype=torch.float32
        )  # a vocabulary's gradient is not copied
        total_O.add_(norm_O.square().cpu())

    return hook
