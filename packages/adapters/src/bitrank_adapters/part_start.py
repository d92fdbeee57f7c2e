"""Adapters that start as a part of their matrices: the rest of each matrix is stored.

A matrix W becomes q(W − s · B A) + s · B A. A matrix is split while its 16-bit weight is in memory, before it
is stored, so the whole unquantized model is never in memory. PEFT's own initializations of this kind read the
weight of an unquantized layer.

The files of such an adapter have :data:`TAKEN_FROM_BASE` as PEFT's ``init_lora_weights``, a name that PEFT
does not know and refuses to load: over the whole base the part would count twice. A program that has the
split base writes ``true`` there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor

from bitrank_adapters.errors import AdapterError
from bitrank_adapters.plans import RankPlan, positive_ranks
from bitrank_adapters.rank_hooks import adapted
from bitrank_adapters.residual_init import adapter_of
from bitrank_adapters.scales import effective_scale
from bitrank_adapters.weight_decomposed import reset_magnitude

_ADAPTER = "default"
TAKEN_FROM_BASE = "taken-from-the-base"


class Part(NamedTuple):
    """Two factors whose product is taken out of a matrix, in fp32. Those of the adapter are 1/√s of them."""

    up_OR: Tensor
    down_RI: Tensor


class PartStart(ABC):
    """A part of each matrix of ``ranks``; one without a rank above 0 stays as it is."""

    def __init__(self, ranks: RankPlan) -> None:
        self._ranks = positive_ranks(ranks)
        self._parts: dict[str, Part] = {}

    @property
    def taken(self) -> dict[str, Part]:
        """The part taken out of each matrix so far, until :meth:`write` has copied it."""
        return dict(self._parts)

    @abstractmethod
    def _part(self, name: str, whole_OI: Tensor, rank: int) -> Part:
        """The part of matrix ``name``, whose weight ``whole_OI`` is fp32."""

    def split(self, name: str, weight_OI: Tensor, stored: Callable[[Tensor], Tensor]) -> Tensor:
        """``weight_OI`` without its part, in its dtype."""
        if name not in self._ranks:
            return weight_OI
        whole_OI = weight_OI.detach().float()
        part = self._parts[name] = self._part(name, whole_OI, self._ranks[name])
        return (whole_OI - part.up_OR @ part.down_RI).to(weight_OI.dtype)

    def write(self, model: PeftModel) -> None:
        """Copy the factors into the adapters of ``model``.

        Raises :class:`AdapterError` if a matrix was not split (one that stays in 16 bits is not), if it has
        no adapter, or one whose ranks change in training: its factors must be orthonormal, and pruning would
        remove a part of the matrix itself.
        """
        if whole := [name for name in self._ranks if name not in self._parts]:
            raise AdapterError(
                f"{whole[0]!r} stays in 16 bits, so no part was taken out of it to start its adapter; "
                "expected a format of fewer bits for every adapted matrix, or give init=default"
            )
        layers = dict(adapted(model))
        for name in list(self._parts):
            layer = adapter_of(layers, name)
            if hasattr(layer, "lora_E"):
                raise AdapterError(
                    "adapters that start as a part of their matrix cannot lose ranks: pruning would remove "
                    "that part. Use the init default, loftq or lq-lora with adaptive ranks"
                )
            part, root = self._parts.pop(name), effective_scale(layer) ** 0.5
            with torch.no_grad():
                layer.lora_A[_ADAPTER].weight.copy_(part.down_RI / root)
                layer.lora_B[_ADAPTER].weight.copy_(part.up_OR / root)
                reset_magnitude(layer)
        if self._ranks:
            config: Any = model.peft_config[_ADAPTER]
            config.init_lora_weights = TAKEN_FROM_BASE
