"""Scale policies: the factor s on an adapter's output as a function of its rank r.

An adapter adds s · B A to its matrix. With Adam and B = 0, one step changes this product by s · lr · sign(G
Aᵀ) A, whose first-order effect grows with r at constant s, with √r at s ∝ 1/√r, and not at all at s ∝ 1/r.
Every policy has the same s at rank 8, so ``at_rank_8`` and the learning rate keep their meaning if the policy
changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bitrank_adapters.errors import AdapterError

REFERENCE_RANK = 8
_ADAPTER = "default"


@dataclass(frozen=True)
class ScalePolicy:
    """``scale(at_rank_8, rank)`` is the scale of an adapter of ``rank`` ≥ 1; ``about`` is the help text."""

    about: str
    scale: Callable[[float, int], float]


def alpha(at_rank_8: float, rank: int) -> float:
    """s = α/r with one α for all ranks (LoRA, Hu et al. 2022, section 4.1)."""
    return at_rank_8 * REFERENCE_RANK / rank


def alpha_capped(at_rank_8: float, rank: int) -> float:
    """s = α/r, at most twice the scale of rank 8: ranks below 4 share the scale of rank 4."""
    return min(alpha(at_rank_8, rank), 2 * at_rank_8)


def rslora(at_rank_8: float, rank: int) -> float:
    """s = α/√r (rsLoRA, Kalajdzievski 2023)."""
    return at_rank_8 * math.sqrt(REFERENCE_RANK / rank)


def constant(at_rank_8: float, rank: int) -> float:
    """One s for all ranks, α = s · r."""
    return at_rank_8


SCALE_POLICIES: dict[str, ScalePolicy] = {
    "alpha": ScalePolicy("s ∝ 1/r: one α for all ranks, as in LoRA", alpha),
    "alpha-capped": ScalePolicy("as alpha, at most twice the scale of rank 8", alpha_capped),
    "rslora": ScalePolicy("s ∝ 1/√r, as in rsLoRA", rslora),
    "constant": ScalePolicy("one s for all ranks", constant),
}


@dataclass(frozen=True)
class AdapterScale:
    """Scale of every adapter of a model: ``at_rank_8`` at rank 8, and by ``policy`` at other ranks.

    Raises :class:`AdapterError` for an unknown policy, or a scale that is not a positive finite number.
    """

    at_rank_8: float = 2.0
    policy: str = "alpha"

    def __post_init__(self) -> None:
        if self.policy not in SCALE_POLICIES:
            known = ", ".join(SCALE_POLICIES)
            raise AdapterError(f"expected one of the scale policies {known}, got {self.policy!r}")
        if not (self.at_rank_8 > 0 and math.isfinite(self.at_rank_8)):
            raise AdapterError(
                f"expected a positive, finite scale of rank-8 adapters, got {self.at_rank_8}; the default "
                "is 2"
            )

    def of(self, rank: int) -> float:
        """The scale s at ``rank``. Rank 0 has no product to scale and takes the scale of rank 1."""
        return SCALE_POLICIES[self.policy].scale(self.at_rank_8, max(rank, 1))

    def alpha(self, rank: int) -> float:
        """PEFT's α of an adapter of ``rank``: α/r is the scale s."""
        return self.of(rank) * rank


def effective_scale(layer: Any) -> float:
    """Scale of the adapter's product in PEFT: α/r, for AdaLoRA α/(rank count + 1e-5)."""
    scaling = float(layer.scaling[_ADAPTER])
    return scaling / _adalora_divisor(layer) if hasattr(layer, "lora_E") else scaling


def set_scale(layer: Any, scale: float) -> None:
    """Make ``scale`` the factor on the adapter's product; no parameter changes."""
    layer.scaling[_ADAPTER] = scale * _adalora_divisor(layer) if hasattr(layer, "lora_E") else scale


def _adalora_divisor(layer: Any) -> float:
    """PEFT divides by the nominal rank, which includes masked ranks, plus this constant."""
    return float(layer.ranknum[_ADAPTER]) + 1e-5
