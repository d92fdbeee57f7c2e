"""EVA: adapters that start at the principal components of their inputs (Paischer et al. 2024).

A has the components with the largest variance as its rows, of length 1, and B is zero, so the start changes
no output. Which matrix gets how many components is :func:`~bitrank_adapters.data_ranks.ranks_by_variance`.
PEFT finds the components batch by batch until they stop changing; here they are those of all calibration
tokens at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import PeftModel
from torch import Tensor

from bitrank_adapters.errors import AdapterError
from bitrank_adapters.gradient_init import refuse_triplets
from bitrank_adapters.plans import RankPlan, positive_ranks
from bitrank_adapters.rank_hooks import adapted
from bitrank_adapters.residual_init import adapter_of
from bitrank_adapters.weight_decomposed import reset_magnitude

_ADAPTER = "default"


class ActivationStart:
    """EVA for the matrices of ``ranks``.

    ``components`` returns the principal components (K, in) of a matrix's inputs by its name, that of the
    largest variance first, each of length 1.
    """

    def __init__(self, ranks: RankPlan, components: Callable[[str], Tensor]) -> None:
        self._ranks, self._components = positive_ranks(ranks), components

    def split(self, name: str, weight_OI: Tensor, stored: Callable[[Tensor], Tensor]) -> Tensor:
        """``weight_OI`` itself: the whole matrix is stored."""
        return weight_OI

    def write(self, model: PeftModel) -> None:
        """Copy the components into A of every adapter in ``model``.

        Raises :class:`AdapterError` if a matrix has no adapter, one with singular values of its own, or
        fewer components than its rank.
        """
        layers = dict(adapted(model))
        for name, rank in self._ranks.items():
            layer = adapter_of(layers, name)
            refuse_triplets(layer)
            components_KI = self._components(name)
            if len(components_KI) < rank:
                raise AdapterError(
                    f"{name!r} has rank {rank}, and {len(components_KI)} principal components of its inputs "
                    "are known; give a smaller rank"
                )
            with torch.no_grad():
                layer.lora_A[_ADAPTER].weight.copy_(components_KI[:rank])
                reset_magnitude(layer)
