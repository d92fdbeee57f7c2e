"""Dynamic-rank adapters (DoRA, Mao et al. 2024): rank-one components, pruned by their share of the update.

ΔW = Σ_i c_i b_i a_iᵀ with c = 0 at the start. The importance of a component is a moving average of
‖c_i b_i a_iᵀ‖_F / ‖ΔW‖_F, and the components with the globally smallest importance are pruned, more and more
as the cube of the time since the warm-up. A penalty on the variance of every a_i and b_i keeps them from
concentrating in a few numbers. Schedule, averages, initialization and penalty are those of the authors' code;
the last pruning also keeps the numbers of the mean rank on every matrix, so that a byte budget holds.
The name is shared with another method (:mod:`~bitrank_adapters.weight_decomposed`), which prunes nothing.

The parameters are those of PEFT's AdaLoRA (P = b, Λ = c, Q = a), so scales, fused layers, saved files and the
audit are those of :class:`~bitrank_adapters.AdaLoraRanks`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from bitrank_adapters.adaptive_ranks import AdaLoraRanks, matrix_name
from bitrank_adapters.attach import DEFAULT_SCALE, AdaLora, attach_adalora
from bitrank_adapters.rank_hooks import adapted
from bitrank_adapters.scales import AdapterScale

_ADAPTER = "default"
_BETA = 0.9  # share of the old value in the moving average of importance
_EPSILON = 1e-8


@dataclass(frozen=True)
class Dynamic:
    """Schedule from rank ``init_r`` to a mean rank of ``target_r``, with the authors' shares of the steps.

    Nothing is pruned in the share ``warm`` of the steps; ranks are constant in the last share ``final``.
    ``every`` is the number of steps between two prunings, at most half of those between warm-up and freeze.
    ``variance`` is the weight of the penalty.
    """

    init_r: int = 12
    target_r: int = 8
    warm: float = 0.15
    final: float = 0.5
    every: int = 5
    variance: float = 0.1


def attach_dynamic(
    model: nn.Module,
    names: list[str],
    schedule: Dynamic,
    *,
    total_steps: int,
    scale: AdapterScale = DEFAULT_SCALE,
    heads: Sequence[str] = (),
    seed: int = 0,
) -> PeftModel:
    """Attach rank-one components to the matrices ``names`` for ``total_steps`` optimizer steps in all.

    Raises :class:`~bitrank_adapters.AdapterError` as :func:`~bitrank_adapters.attach_adalora` does.
    """
    as_adalora = AdaLora(
        schedule.init_r, schedule.target_r, schedule.warm, schedule.final, schedule.every, schedule.variance
    )
    peft_model = attach_adalora(
        model, names, as_adalora, total_steps=total_steps, scale=scale, heads=heads, seed=seed
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for _, layer in adapted(peft_model):
            nn.init.kaiming_uniform_(layer.lora_A[_ADAPTER])
            nn.init.kaiming_uniform_(layer.lora_B[_ADAPTER])
            layer.lora_E[_ADAPTER].zero_()
    return peft_model


class DynamicRanks(AdaLoraRanks):
    """Prunes components after each step, adds the variance penalty, audits the budget."""

    def __init__(self, model: PeftModel) -> None:
        super().__init__(model)
        self._importance = {
            name: layer.lora_E[_ADAPTER].detach().new_zeros(layer.r[_ADAPTER])
            for name, layer in adapted(model)
        }
        self._frozen = False

    def penalty(self) -> Tensor:
        """weight · mean variance of the vectors a_i and b_i; 0 after the freeze, as in the authors' code."""
        variances = [
            factor.var(dim=1 if "lora_A" in name else 0)
            for name, factor in self._parameters.items()
            if "lora_E" not in name
        ]
        weight = 0.0 if self._frozen else float(self._config.orth_reg_weight)
        return weight * torch.cat(variances).mean()

    def after_step(self, step: int) -> None:
        if step > self.freeze_step:
            self._mask()
            return
        self._update_importance()
        since, span = step - self._config.tinit, self.freeze_step - self._config.tinit
        if since >= 0 and (since % self._config.deltaT == 0 or since == span):
            self._prune(since / span)
        if step == self.freeze_step:
            self._frozen = True
            self._audit_bytes()

    def state(self) -> tuple[dict[str, Tensor], str]:
        text = json.dumps({"masks": self._config.rank_pattern or {}, "frozen": self._frozen})
        return {name: value.clone() for name, value in self._importance.items()}, text

    def restore(self, tensors: dict[str, Tensor], text: str) -> None:
        saved = json.loads(text)
        super().restore({}, json.dumps(saved["masks"]))
        self._frozen = bool(saved["frozen"])
        for name, value in tensors.items():
            self._importance[name].copy_(value)

    @torch.no_grad()
    def _update_importance(self) -> None:
        for name, layer in adapted(self._model):
            share_R = component_shares(layer)
            self._importance[name] = self._importance[name].to(share_R)
            self._importance[name].mul_(_BETA).add_(share_R, alpha=1 - _BETA)

    def _prune(self, time: float) -> None:
        """Zero the least important components at ``time``: 0 after the warm-up, 1 at the freeze."""
        total = sum(len(value) for value in self._importance.values())
        kept = total - int((total - self.budget) * time**3)
        order = torch.cat(list(self._importance.values())).argsort(descending=True, stable=True).cpu()
        if time == 1:
            sizes = self._sizes()
            counts = [torch.full((len(value),), sizes[name]) for name, value in self._importance.items()]
            kept = min(kept, int((torch.cat(counts)[order].cumsum(0) <= self._most_numbers).sum()))
        mask = torch.zeros(total, dtype=torch.bool)
        mask[order[:kept]] = True
        self._config.rank_pattern = dict(self._split(mask))
        self._kept = {}
        self._mask()
        self._follow_ranks()

    def _split(self, mask: Tensor) -> Iterator[tuple[str, list[bool]]]:
        """(parameter name of Λ, kept components) of every matrix."""
        parts = mask.split([len(value) for value in self._importance.values()])
        keys = {matrix_name(key): key for key in self._parameters if "lora_E" in key}
        for name, part in zip(self._importance, parts, strict=True):
            yield keys[name], part.tolist()


def component_shares(layer: Any) -> Tensor:
    """‖c_i b_i a_iᵀ‖_F / (‖ΔW‖_F + ε) of every component of an AdaLoRA layer, without forming ΔW.

    ‖Σ c_i b_i a_iᵀ‖_F² = Σ_ij c_i c_j (a_iᵀ a_j) (b_iᵀ b_j).
    """
    down_RI, up_OR = layer.lora_A[_ADAPTER].float(), layer.lora_B[_ADAPTER].float()
    weight_R = layer.lora_E[_ADAPTER].float()[:, 0]
    gram_RR = (down_RI @ down_RI.T) * (up_OR.T @ up_OR) * torch.outer(weight_R, weight_R)
    whole = gram_RR.sum().clamp_min(0).sqrt()
    return gram_RR.diagonal().clamp_min(0).sqrt() / (whole + _EPSILON)
