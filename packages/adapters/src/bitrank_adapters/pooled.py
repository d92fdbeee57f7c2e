"""QA-LoRA (Xu et al. 2024): adapters on inputs summed over quantization groups, which merge exactly.

y = W_q x + s · B A p(x), with p(x) the sum of x over each group of g neighbouring inputs, as in the authors'
algorithm 1. The update of a weight is then the same within a group, s · (B A)_og, and an affine format with
groups of g takes it into the minimum of each group: no code changes (equation 5 in the form of minima instead
of zero points). A file has the plain LoRA of the same function, with each column of A repeated g times, which
stock PEFT loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from bitrank_adapters.attach import DEFAULT_SCALE, attach_lora, shapes_of
from bitrank_adapters.errors import AdapterError
from bitrank_adapters.plans import RankPlan, positive_ranks
from bitrank_adapters.rank_hooks import FixedRanks, adapted
from bitrank_adapters.scales import AdapterScale
from bitrank_adapters.stored import STORED_BYTES, STORED_DTYPE, saved_parameters

_ADAPTER = "default"
_DOWN = f".lora_A.{_ADAPTER}.weight"


class PooledLinear(nn.Linear):
    """A linear layer (rank, in/group) on sums of ``group`` neighbouring inputs: (…, in) → (…, rank)."""

    def __init__(self, inputs: int, rank: int, group: int) -> None:
        super().__init__(inputs // group, rank, bias=False)
        self.group = group

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.unflatten(-1, (-1, self.group)).sum(-1))


def attach_pooled(
    model: nn.Module,
    plan: RankPlan,
    group: int,
    *,
    scale: AdapterScale = DEFAULT_SCALE,
    heads: Sequence[str] = (),
    seed: int = 0,
) -> PeftModel:
    """As :func:`~bitrank_adapters.attach_lora`, with inputs summed over groups of ``group``.

    Raises :class:`AdapterError` as ``attach_lora`` does, and for a matrix with another number of inputs than
    a multiple of ``group``.
    """
    shapes = shapes_of(model, plan)
    for name in positive_ranks(plan):
        if name in shapes and shapes[name][1] % group:
            raise AdapterError(
                f"{name} has {shapes[name][1]} inputs, which are no multiple of the group {group}; give a "
                "group that divides them, or rank 0"
            )
    peft_model = attach_lora(model, plan, scale=scale, heads=heads, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _, layer in adapted(peft_model):
            plain = layer.lora_A[_ADAPTER]
            pooled = PooledLinear(plain.in_features, plain.out_features, group)
            layer.lora_A[_ADAPTER] = pooled.to(plain.weight.device, plain.weight.dtype)
    return peft_model


class PooledRanks(FixedRanks):
    """QA-LoRA: constant ranks, saved as plain LoRA."""

    def stored_bytes(self) -> int:
        return STORED_BYTES * sum(tensor.numel() for tensor in self._as_lora().values())

    def save(self, folder: Path) -> None:
        """Save plain LoRA (safetensors, bf16) of the same function, which stock PEFT loads."""
        with self.as_stored():
            rounded = {name: tensor.to(STORED_DTYPE) for name, tensor in self._as_lora().items()}
            self._model.save_pretrained(str(folder), state_dict=rounded, save_embedding_layers=False)

    def _as_lora(self) -> dict[str, Tensor]:
        """Saved parameters by name, with each column of A repeated for every input of its group."""
        groups = {
            f"base_model.model.{name}{_DOWN}": layer.lora_A[_ADAPTER].group
            for name, layer in adapted(self._model)
        }
        return {
            name: p.detach().repeat_interleave(groups[name], dim=1) if name in groups else p.detach()
            for name, p in saved_parameters(self._model).items()
        }
