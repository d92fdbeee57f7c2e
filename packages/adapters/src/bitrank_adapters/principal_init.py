"""PiSSA: adapters that start as the largest singular triplets of their matrices.

A matrix W becomes q(W − s · B A) + s · B A with s · B A = U_r Σ_r V_rᵀ, the first r singular triplets of W
(Meng et al. 2024, equations 2 to 4; QPiSSA if q rounds). Both factors have √(Σ_r/s), as in PEFT, whose own
initialization reads the weight of an unquantized layer: here a matrix is split while its 16-bit weight is in
memory, before it is stored. Further rounds of QPiSSA are LoftQ from another start and are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from bitrank_adapters.errors import AdapterError
from bitrank_adapters.lowrank import Factors, best_low_rank
from bitrank_adapters.plans import RankPlan, positive_ranks
from bitrank_adapters.rank_hooks import adapted
from bitrank_adapters.residual_init import adapter_of
from bitrank_adapters.scales import effective_scale
from bitrank_adapters.weight_decomposed import reset_magnitude

_ADAPTER = "default"


class PrincipalStart:
    """PiSSA for the matrices of ``ranks``; one without a rank above 0 stays as it is."""

    def __init__(self, ranks: RankPlan) -> None:
        self._ranks = positive_ranks(ranks)
        self._factors: dict[str, Factors] = {}

    def split(self, name: str, weight_OI: Tensor, stored: Callable[[Tensor], Tensor]) -> Tensor:
        """``weight_OI`` without its largest singular triplets, in its dtype."""
        if name not in self._ranks:
            return weight_OI
        whole_OI = weight_OI.detach().float()
        self._factors[name] = best_low_rank(whole_OI, self._ranks[name])
        return (whole_OI - self._factors[name].product()).to(weight_OI.dtype)

    def write(self, model: PeftModel) -> None:
        """Copy the triplets into the adapters of ``model``.

        Raises :class:`AdapterError` if a matrix has no adapter, or one whose ranks change in training: its
        factors must be orthonormal, and pruning would remove a part of the matrix itself.
        """
        layers = dict(adapted(model))
        for name in list(self._factors):
            layer = adapter_of(layers, name)
            if hasattr(layer, "lora_E"):
                raise AdapterError(
                    "adapters that start as the largest part of their matrix cannot lose ranks: pruning "
                    "would remove that part. Use the init default, loftq or lq-lora with adaptive ranks"
                )
            with torch.no_grad():
                _write(layer, self._factors.pop(name))


def _write(layer: Any, factors: Factors) -> None:
    root_R = (factors.values_R / effective_scale(layer)).clamp_min(0).sqrt()
    layer.lora_A[_ADAPTER].weight.copy_(root_R[:, None] * factors.right_RI)
    layer.lora_B[_ADAPTER].weight.copy_(factors.left_OR * root_R)
    reset_magnitude(layer)
