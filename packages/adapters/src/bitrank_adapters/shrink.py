"""AdaLoRA that removes pruned ranks at the freeze and continues training.

PEFT masks a pruned triplet and keeps its parameters, moments and products. Here the kept rows of Λ and Q and
columns of P become new parameters at the freeze, and a matrix of rank 0 loses its adapter. The scale of the
product is unchanged, so the model computes the same function. Training continues with P Λ Q, not with B A:
the optimizer's moments then belong to the same numbers and are cut like them, whereas folding Λ into a factor
would leave moments of a gradient that never existed. The orthogonality term covers the remaining triplets.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from bitrank_adapters.adaptive_ranks import AdaLoraRanks, matrix_name
from bitrank_adapters.rank_hooks import adapted
from bitrank_adapters.scales import effective_scale, set_scale

_ADAPTER = "default"
_AXIS = {"lora_A": 0, "lora_B": 1, "lora_E": 0}  # axis of the rank in (rank, in), (out, rank), (rank, 1)


class ShrinkingRanks(AdaLoraRanks):
    """AdaLoRA that removes pruned ranks at the freeze."""

    def __init__(self, model: PeftModel) -> None:
        super().__init__(model)
        self._resized: dict[str, tuple[int, Tensor]] | None = None
        self._pattern: dict[str, list[bool]] = {}

    def after_step(self, step: int) -> None:
        if step <= self.freeze_step:
            super().after_step(step)
        if step == self.freeze_step:
            self._shrink(dict(self._config.rank_pattern))

    def resized(self) -> dict[str, tuple[int, Tensor]] | None:
        """{parameter name: (axis, kept indices)} of parameters cut since the last call; None if none was.

        Names are those of ``model.named_parameters()``. A removed parameter has no kept index.
        """
        resized, self._resized = self._resized, None
        return resized

    def ranks(self) -> dict[str, int]:
        if not self._pattern:
            return super().ranks()
        return {matrix_name(key): sum(mask) for key, mask in self._pattern.items()}

    def state(self) -> tuple[dict[str, Tensor], str]:
        tensors, pattern = super().state()
        return tensors, json.dumps({"masks": json.loads(pattern), "shrunk": bool(self._pattern)})

    def restore(self, tensors: dict[str, Tensor], text: str) -> None:
        saved = json.loads(text)
        super().restore(tensors, json.dumps(saved["masks"]))
        if saved["shrunk"]:
            self._shrink(saved["masks"])

    def _masks(self) -> dict[str, list[bool]]:
        return {} if self._pattern else super()._masks()

    def _shrink(self, pattern: dict[str, list[bool]]) -> None:
        layers = dict(adapted(self._model))
        self._pattern = {key: list(mask) for key, mask in pattern.items()}
        self._resized = {}
        for key, mask in self._pattern.items():
            name, kept = matrix_name(key), torch.tensor(mask).nonzero()[:, 0]
            prefix = f"base_model.model.{name}"
            self._resized |= {f"{prefix}.{part}.{_ADAPTER}": (axis, kept) for part, axis in _AXIS.items()}
            if len(kept):
                keep_ranks(layers[name], kept)
            else:
                _remove(self._model, prefix, layers[name])
        self._look()


def keep_ranks(layer: Any, kept: Tensor) -> None:
    """Cut an AdaLoRA layer to the triplets ``kept`` (indices); the scale of their product is unchanged."""
    scale = effective_scale(layer)
    for part, axis in _AXIS.items():
        parameters = getattr(layer, part)
        old = parameters[_ADAPTER]
        parameters[_ADAPTER] = nn.Parameter(
            old.detach().index_select(axis, kept.to(old.device)).contiguous(), requires_grad=old.requires_grad
        )
    layer.r[_ADAPTER] = len(kept)
    with torch.no_grad():
        layer.ranknum[_ADAPTER].fill_(float(len(kept)))
    set_scale(layer, scale)


def _remove(model: PeftModel, path: str, layer: Any) -> None:
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, layer.base_layer)
