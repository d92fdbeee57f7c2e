"""Ranks from learned scales (ARD-LoRA, Shinwari and Usama 2025): one trained factor per matrix sets its rank.

ΔW = s α Σ_i b_i a_iᵀ with one trained α per matrix, 1 at the start. The loss has the terms λ₁ Σ |α|, which
makes scales small where the task has no use for them, and λ₂ Σ |α_{l+1} − α_l| over neighbouring layers,
the total variation. A matrix gets the share of the budget that its |α| has in the sum of all. The components
that remain are those of the largest norm. Ranks never grow, and the budget shrinks as in
:mod:`~bitrank_adapters.dynamic_rank`. The authors' formulas could not be read: these follow their abstract.

The parameters are those of PEFT's AdaLoRA (P = b, Λ = α for every component, Q = a), so scales, fused layers,
saved files and the audit are those of :class:`~bitrank_adapters.AdaLoraRanks`. Λ of a matrix is one number: a
hook on its gradient gives every active component the sum of their gradients, and equal gradients of equal
numbers keep them equal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from bitrank_adapters.adaptive_ranks import AdaLoraRanks, matrix_name
from bitrank_adapters.attach import DEFAULT_SCALE, AdaLora, attach_adalora
from bitrank_adapters.rank_hooks import adapted
from bitrank_adapters.scales import AdapterScale, effective_scale, set_scale

_ADAPTER = "default"
_PACE = 2.0  # a step of Adam changes α by this many learning rates
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class LearnedScales:
    """Schedule from rank ``init_r`` to a mean rank of ``target_r``, and the weights of the penalties.

    Nothing is pruned in the share ``warm`` of the steps; ranks are constant in the last share ``final``.
    ``every`` is the number of steps between two prunings, at most half of those between warm-up and freeze.
    ``sparsity`` is λ₁ and ``variation`` λ₂.
    """

    init_r: int = 12
    target_r: int = 8
    warm: float = 0.15
    final: float = 0.5
    every: int = 5
    sparsity: float = 1e-4
    variation: float = 1e-4


def attach_learned_scales(
    model: nn.Module,
    names: list[str],
    schedule: LearnedScales,
    *,
    total_steps: int,
    scale: AdapterScale = DEFAULT_SCALE,
    heads: Sequence[str] = (),
    seed: int = 0,
) -> PeftModel:
    """Attach adapters with a learned scale to the matrices ``names`` for ``total_steps`` optimizer steps.

    A starts as in LoRA and B at zero. Raises :class:`~bitrank_adapters.AdapterError` as
    :func:`~bitrank_adapters.attach_adalora` does.
    """
    as_adalora = AdaLora(schedule.init_r, schedule.target_r, schedule.warm, schedule.final, schedule.every)
    peft_model = attach_adalora(
        model, names, as_adalora, total_steps=total_steps, scale=scale, heads=heads, seed=seed
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for _, layer in adapted(peft_model):
            nn.init.kaiming_uniform_(layer.lora_A[_ADAPTER], a=5**0.5)
            layer.lora_B[_ADAPTER].zero_()
            layer.lora_E[_ADAPTER].fill_(1 / _PACE)
            set_scale(layer, _PACE * scale.of(schedule.init_r))
    return peft_model


class LearnedScaleRanks(AdaLoraRanks):
    """Sets ranks by the learned scales after each step, adds their penalties, audits the budget."""

    def __init__(self, model: PeftModel, schedule: LearnedScales) -> None:
        super().__init__(model)
        self._schedule = schedule
        self._initial = self._scale.of(schedule.init_r)
        for name, value in self._values():
            value.register_hook(lambda grad, name=name: self._shared(name, grad))

    def penalty(self) -> Tensor:
        """λ₁ Σ |α| + λ₂ Σ |α_{l+1} − α_l| of the current scales."""
        return scale_penalty(self.scales(), self._schedule.sparsity, self._schedule.variation)

    def scales(self) -> dict[str, Tensor]:
        """The learned scale α of every matrix, relative to its start; 0 for a matrix of rank 0."""
        found = {}
        ranks = self.ranks()
        for name, layer in adapted(self._model):
            # Pruned components are zero, so the sum over all is that over the active ones.
            factor = effective_scale(layer) / self._initial / max(ranks[name], 1)
            found[name] = layer.lora_E[_ADAPTER].sum() * factor
        return found

    def after_step(self, step: int) -> None:
        if step > self.freeze_step:
            self._mask()
            return
        since, span = step - self._config.tinit, self.freeze_step - self._config.tinit
        if self._config.rank_pattern:
            self._mask()
        if since >= 0 and (since % self._config.deltaT == 0 or since == span):
            self._prune(since / span)
        if step == self.freeze_step:
            self._audit_bytes()

    def state(self) -> tuple[dict[str, Tensor], str]:
        return {}, json.dumps(self._config.rank_pattern or {})

    def _values(self) -> Iterator[tuple[str, Tensor]]:
        """(parameter name, Λ) of every matrix."""
        yield from ((name, p) for name, p in self._parameters.items() if "lora_E" in name)

    def _shared(self, name: str, grad: Tensor) -> Tensor:
        """The gradient of α for every active component of the matrix whose Λ is called ``name``."""
        pattern = self._config.rank_pattern or {}
        active = torch.tensor(pattern.get(name, [True] * len(grad)), device=grad.device).view(-1, 1)
        return torch.where(active, (grad * active).sum(), torch.zeros_like(grad))

    @torch.no_grad()
    def _prune(self, time: float) -> None:
        """Set ranks at ``time``: 0 after the warm-up, 1 at the freeze."""
        total = self._schedule.init_r * len(adapted(self._model))
        kept = total - int((total - self.budget) * time**3)
        shares, most = {n: float(a.abs()) for n, a in self.scales().items()}, self.ranks()
        wanted = apportion(kept, shares, most)
        while time == 1 and self._stored_numbers(wanted) > self._most_numbers:  # larger matrices got more
            kept -= 1
            wanted = apportion(kept, shares, most)
        before = self._config.rank_pattern or {}
        pattern = {}
        keys = {matrix_name(key): key for key, _ in self._values()}
        for name, layer in adapted(self._model):
            norm_R = layer.lora_A[_ADAPTER].norm(dim=1) * layer.lora_B[_ADAPTER].norm(dim=0)
            active = before.get(keys[name], [True] * len(norm_R))
            norm_R = norm_R.masked_fill(~torch.tensor(active, device=norm_R.device), -1.0)
            order = norm_R.argsort(descending=True, stable=True)[: wanted[name]].tolist()
            pattern[keys[name]] = [place in order for place in range(len(norm_R))]
        self._config.rank_pattern = pattern
        self._kept = {}
        self._mask()
        self._follow_ranks()

    def _scales(self) -> Iterator[tuple[str, Any, float]]:
        for name, layer, scale in super()._scales():
            yield name, layer, _PACE * scale


def scale_penalty(scales: Mapping[str, Tensor], sparsity: float, variation: float) -> Tensor:
    """``sparsity`` · Σ |α| + ``variation`` · Σ |α_{l+1} − α_l|.

    ``scales`` has α by matrix name. Neighbours are matrices whose names differ in the number of their layer
    only, in the order of these numbers.
    """
    stacked = torch.stack(list(scales.values()))
    rows: dict[str, list[tuple[int, Tensor]]] = {}
    for name, alpha in scales.items():
        layer = _LAYER.search(f".{name}.")
        kind = _LAYER.sub(".*.", f".{name}.", count=1)
        rows.setdefault(kind, []).append((int(layer[1]) if layer else 0, alpha))
    total = sparsity * stacked.abs().sum()
    for row in rows.values():
        ordered = torch.stack([alpha for _, alpha in sorted(row, key=lambda pair: pair[0])])
        total = total + variation * ordered.diff().abs().sum()
    return total


def apportion(total: int, weights: Mapping[str, float], most: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers in proportion to ``weights`` that sum to ``total``, none above ``most``.

    A number that its limit cuts leaves the rest to the others. Fractions go to the largest remainders, of
    equal ones to the first. The sum is smaller if the limits, or weights of 0, leave no other.
    """
    shares = dict.fromkeys(weights, 0.0)
    free = {name: weight for name, weight in weights.items() if weight > 0}
    while free:
        left = total - sum(shares[name] for name in shares if name not in free)
        part = left / sum(free.values())
        cut = [name for name in free if free[name] * part >= most[name]]
        shares |= {name: weight * part for name, weight in free.items()}
        shares |= {name: float(most[name]) for name in cut}
        if not cut:
            break
        free = {name: weight for name, weight in free.items() if name not in cut}
    whole = {name: int(share) for name, share in shares.items()}
    missing = min(total, round(sum(shares.values()))) - sum(whole.values())
    order = sorted(shares, key=lambda name: whole[name] - shares[name])
    for name in order[:missing]:
        whole[name] += 1
    return whole
