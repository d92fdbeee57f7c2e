"""Learning of each matrix in a short training: values of the directions of its change, in nats.

A uniform run of :data:`RANK` trains for :data:`STEPS` steps on training sequences. The change of a matrix,
ΔW = s (B A − B₀ A₀) against the adapter's start, has the singular directions ΔW_k = σ_k u_k v_kᵀ. On held-out
training sequences, which the run does not see, a direction is worth

    v_k = −⟨Ḡ, ΔW_k⟩ − ½ F(ΔW_k)

Ḡ is the mean of the gradients before and after the training, and F the output-error Fisher score of
:mod:`bitrank_quant.sensitivity.samples` at the same positions, a mean over both too. Only projections on the
directions are computed: ⟨G, σ u vᵀ⟩ = Σ_n σ (u·g_n)(v·x_n), so no gradient of a matrix is stored.
Trained heads have their values from after the training in both passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from bitrank_adapters import Factors, RankPlan, ResidualStart, adapted, best_low_rank, effective_scale
from bitrank_data import Batch, TokenisedTask
from torch import Tensor, nn
from torch.nn import functional as F

from bitrank.planning.short_runs import build_arm, train_briefly
from bitrank.process.compute import Compute
from bitrank.run.data import load_data
from bitrank.sensitivity.calibration import calibration_batches, calibration_order
from bitrank.sensitivity.fit_head import logits_and_labels
from bitrank.spec.configs import Config
from bitrank.spec.rules import GivenBits, GivenRanks
from bitrank.spec.run_spec import RunSpec
from bitrank.spec.task_kinds import task_kind

RANK = 32
STEPS = 24
_ADAPTER = "default"
Pairs = dict[str, tuple[Tensor, Tensor]]
Values = dict[str, np.ndarray]


@dataclass
class DirectionSums:
    """Sums over positions for the directions of one matrix: of ⟨G, ΔW_k⟩ and of F(ΔW_k), without 1/U."""

    factors: Factors
    slope_K: Tensor
    fisher_K: Tensor

    @classmethod
    def of(cls, delta_OI: Tensor, directions: int) -> DirectionSums:
        """Start the sums for the largest ``directions`` of ``delta_OI``."""
        factors = best_low_rank(delta_OI, min(directions, *delta_OI.shape))
        return cls(factors, torch.zeros_like(factors.values_R), torch.zeros_like(factors.values_R))

    def add(self, x_NI: Tensor, grad_NO: Tensor) -> None:
        """Add the positions with inputs ``x_NI`` and gradients ``grad_NO`` of the summed loss."""
        left_OK = self.factors.left_OR
        moved_NK = (x_NI @ self.factors.right_RI.T) * self.factors.values_R
        self.slope_K += (moved_NK * (grad_NO @ left_OK)).sum(0)
        self.fisher_K += (moved_NK.square() * (grad_NO.square() @ left_OK.square())).sum(0)

    def values(self, losses: int) -> np.ndarray:
        """Return v_K in nats, for sums over ``losses`` losses."""
        value_K = -(self.slope_K + 0.5 * self.fisher_K) / losses
        return value_K.cpu().double().numpy()


def learned_values(spec: RunSpec, precision: dict[str, str], ranks: RankPlan, init: ResidualStart) -> Values:
    """Return v_K of every matrix in ``ranks``, in the order of falling singular values.

    The run has the formats ``precision``, and adapters of ``ranks`` that start from ``init``; everything else
    is as in ``spec``. A seed gives the same values. Raises :class:`~bitrank_trainer.Diverged`.
    """
    # Hooks need the inputs and outputs of each layer, which fused layers do not have.
    spec = replace(spec, steps=STEPS, epochs=None, fused=False)
    data = load_data(spec)
    kept, held_out = split_held_out(data.task)
    data = replace(data, task=kept)
    config = Config(GivenBits(precision), GivenRanks(ranks), "joint")
    built = build_arm(spec, data, config, init)
    start = adapters_of(built.model)
    with TemporaryDirectory() as folder:
        train_briefly(spec, data, data.validation.select(np.arange(1)), built, Path(folder))
    end = adapters_of(built.model)
    sums = {
        name: DirectionSums.of(change(layer, start[name], end[name]), 2 * layer.r[_ADAPTER])
        for name, layer in adapted(built.model)
    }
    losses = add_positions(built.model, sums, held_out, spec)
    write_adapters(built.model, start)
    losses += add_positions(built.model, sums, held_out, spec)
    return {name: matrix.values(losses) for name, matrix in sums.items()}


def split_held_out(task: TokenisedTask) -> tuple[TokenisedTask, list[Batch]]:
    """Return ``task`` without the held-out training sequences, and these in batches."""
    sizes, train = task_kind(task.kind).calibration, task.splits["train"]
    count = min(sizes.moments + sizes.held_out, len(train) // 2)
    rest = np.sort(calibration_order(train)[count:])
    batches = calibration_batches(task, count, tokens=sizes.graph_tokens)
    return replace(task, splits={**task.splits, "train": train.select(rest)}), batches


def adapters_of(model: Any) -> Pairs:
    """Return copies of s · B (O, R) and A (R, I) of every adapted matrix, in fp32."""
    pairs = {}
    for name, layer in adapted(model):
        left_OR, right_RI = _parameters(layer)
        scaled_OR = effective_scale(layer) * left_OR.detach().float()
        pairs[name] = (scaled_OR, right_RI.detach().float().clone())
    return pairs


def write_adapters(model: Any, pairs: Pairs) -> None:
    """Write the factors that :func:`adapters_of` returned into the adapters."""
    with torch.no_grad():
        for name, layer in adapted(model):
            left_OR, right_RI = _parameters(layer)
            left_OR.copy_(pairs[name][0] / effective_scale(layer))
            right_RI.copy_(pairs[name][1])


def change(layer: Any, start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]) -> Tensor:
    """Return ΔW of ``layer`` (O, I)."""
    return end[0] @ end[1] - start[0] @ start[1]


def _parameters(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.lora_B[_ADAPTER].weight, layer.lora_A[_ADAPTER].weight


def add_positions(model: Any, sums: dict[str, DirectionSums], batches: Sequence[Batch], spec: RunSpec) -> int:
    """Add the positions of ``batches`` to ``sums``; return the number of losses."""
    forward, losses = logits_and_labels(spec.kind, Compute.of(spec).device), 0
    model.eval()
    with _watched(model, sums):
        for batch in batches:
            logits_NC, labels_N = forward(model, batch)
            F.cross_entropy(logits_NC.float(), labels_N, reduction="sum").backward()
            model.zero_grad(set_to_none=True)
            losses += int((labels_N >= 0).sum())
    return losses


@contextmanager
def _watched(model: Any, sums: dict[str, DirectionSums]) -> Iterator[None]:
    """Add every adapted layer's inputs and output gradients to ``sums`` while the context is open."""
    handles = [
        layer.register_forward_hook(_adding(sums[name])) for name, layer in adapted(model) if name in sums
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(matrix: DirectionSums) -> Any:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x_NI = inputs[0].detach().flatten(0, -2).float()

        def add(grad: Tensor) -> None:
            matrix.add(x_NI, grad.detach().flatten(0, -2).float())

        output.register_hook(add)

    return hook
