"""AdaLoRA's hook of the training loop: ranks are pruned while training, and the file is plain LoRA.

``step`` counts optimizer steps from 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from bitrank_adapters.errors import BudgetMissed
from bitrank_adapters.export import write_lora
from bitrank_adapters.importance import OffOrthogonal, update_importance
from bitrank_adapters.rank_hooks import FixedRanks, adapted, scale_of
from bitrank_adapters.scales import effective_scale, set_scale
from bitrank_adapters.stored import STORED_BYTES, STORED_DTYPE, saved_parameters

_ADAPTER = "default"


class AdaLoraRanks(FixedRanks):
    """AdaLoRA: allocates ranks after each step, adds the orthogonality term, audits the budget.

    PEFT's allocator does the arithmetic (Zhang et al. 2023, equations 8 to 12). Three additions: its moving
    averages are part of the state, so that a resumed run continues with the same numbers; the run fails
    at the freeze if the active ranks miss the budget; and the scale of each matrix follows its active rank by
    the policy of :func:`~bitrank_adapters.attach_adalora`, as it does for LoRA of that rank.

    A new scale divides Λ by the same factor, so the output does not change and neither do PEFT's importances
    |w ∂L/∂w|; only the size of later steps does. Files have A = Λ Q and B = P (equation 3), one rank per
    matrix and no singular values: a pruned adapter takes the bytes of a LoRA of its ranks, as budgets count.
    """

    def __init__(self, model: PeftModel) -> None:
        super().__init__(model)
        self._tuner: Any = model.base_model
        self._config: Any = model.peft_config[_ADAPTER]
        self._scale = scale_of(model)
        self._kept: dict[str, Tensor] = {}
        self._rescaled: dict[str, float] = {}
        self._look()
        allocator = self._tuner.rankallocator
        allocator.update_ipt = lambda _: update_importance(allocator, self._parameters)

    def _look(self) -> None:
        """Update the references to the adapters' parameters."""
        self._parameters = {
            n: p for n, p in self._tuner.model.named_parameters() if "lora_" in n and _ADAPTER in n
        }
        self._factors = [p for n, p in self._parameters.items() if "lora_E" not in n]

    @property
    def freeze_step(self) -> int:
        """Optimizer step after which ranks are constant."""
        return int(self._config.total_step - self._config.tfinal)

    @property
    def factors(self) -> list[Tensor]:
        """P and Q of every adapted matrix: the parameters that :meth:`penalty` depends on."""
        return list(self._factors)

    @property
    def budget(self) -> int:
        """Sum of active ranks after the freeze: target_r · matrices."""
        return int(self._tuner.rankallocator.target_bgt)

    def penalty(self) -> Tensor:
        """weight · mean over P and Q of ‖PᵀP − I‖_F, as in PEFT.

        Equation 4 of Zhang et al. 2023 has squared norms, the authors' code has not.
        """
        term: Tensor = OffOrthogonal.apply(*self._factors)
        return self._config.orth_reg_weight * term

    def after_step(self, step: int) -> None:
        if step > self.freeze_step:
            self._mask()
            return
        self._tuner.update_and_allocate(step)
        self._follow_ranks()
        if step == self.freeze_step:
            self._audit()

    def settled(self, step: int) -> bool:
        return step >= self.freeze_step

    def ranks(self) -> dict[str, int]:
        pattern = self._config.rank_pattern
        if not pattern:
            return super().ranks()
        kept = {matrix_name(key): sum(mask) for key, mask in pattern.items()}
        return {name: kept[name] for name, _ in adapted(self._model)}

    def state(self) -> tuple[dict[str, Tensor], str]:
        allocator = self._tuner.rankallocator
        averages = {"avg": allocator.exp_avg_ipt, "unc": allocator.exp_avg_unc}
        tensors = {
            f"{kind}:{name}": value for kind, values in averages.items() for name, value in values.items()
        }
        return tensors, json.dumps(self._config.rank_pattern or {})

    def restore(self, tensors: dict[str, Tensor], text: str) -> None:
        allocator = self._tuner.rankallocator
        averages = {"avg": allocator.exp_avg_ipt, "unc": allocator.exp_avg_unc}
        for key, value in tensors.items():
            kind, _, name = key.partition(":")
            averages[kind][name] = value.clone()
            allocator.ipt[name] = torch.zeros_like(
                value
            )  # placeholder, recomputed at each step; PEFT expects averages for its key
        self._config.rank_pattern = json.loads(text) or {}
        if self._config.rank_pattern:
            for _, layer, scale in self._scales():  # Λ, which is restored separately, belongs to this scale
                set_scale(layer, scale)

    def rescaled(self) -> dict[str, float] | None:
        rescaled, self._rescaled = self._rescaled, {}
        return rescaled or None

    def stored_bytes(self) -> int:
        ranks = self.ranks()
        heads = sum(p.numel() for name, p in saved_parameters(self._model).items() if ".lora_" not in name)
        return STORED_BYTES * (heads + self._stored_numbers(ranks))

    def _stored_numbers(self, ranks: Mapping[str, int]) -> int:
        """Numbers of the factors of all matrices at ``ranks``: out + in for each rank."""
        return sum(ranks[name] * size for name, size in self._sizes().items())

    def _sizes(self) -> dict[str, int]:
        """Numbers of one rank of every matrix: out + in."""
        return {
            name: layer.lora_A[_ADAPTER].shape[1] + layer.lora_B[_ADAPTER].shape[0]
            for name, layer in adapted(self._model)
        }

    @property
    def _most_numbers(self) -> int:
        """Numbers of the factors if every matrix keeps the mean rank, which is what a byte budget counts."""
        return self.budget // len(adapted(self._model)) * sum(self._sizes().values())

    def save(self, folder: Path) -> None:
        """Save a plain LoRA adapter (bf16) with the active rank and α of each matrix; stock PEFT loads it."""
        with self.as_stored():
            write_lora(self._model, folder, dict(self._active_factors()), STORED_DTYPE)

    @contextmanager
    def in_file_scale(self) -> Iterator[None]:
        """Inside, Λ is that of an AdaLoRA file: for PEFT's α/r of the initial rank. Nothing is rounded."""
        kept = {layer: layer.lora_E[_ADAPTER].detach().clone() for _, layer in adapted(self._model)}
        scalings = {layer: layer.scaling[_ADAPTER] for layer in kept}
        try:
            self._take_file_scale()
            yield
        finally:
            for layer, values in kept.items():
                layer.lora_E[_ADAPTER].data.copy_(values)
                layer.scaling[_ADAPTER] = scalings[layer]

    @torch.no_grad()
    def _take_stored_form(self) -> None:
        """The file is plain LoRA: Λ is folded into A before both are rounded."""
        ranks = self.ranks()
        for name, layer in adapted(self._model):
            scale = self._scale.of(ranks[name])
            factor_R1 = layer.lora_E[_ADAPTER] * (effective_scale(layer) / scale)
            layer.lora_A[_ADAPTER].mul_(factor_R1)
            layer.lora_E[_ADAPTER].fill_(1.0)
            set_scale(layer, scale)
        super()._take_stored_form()

    def _active_factors(self) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        """(name, (A, B)) of every matrix with active ranks, without its pruned ones."""
        masks = {matrix_name(key): mask for key, mask in self._masks().items()}
        for name, layer in adapted(self._model):
            down_RI, up_OR = layer.lora_A[_ADAPTER].detach(), layer.lora_B[_ADAPTER].detach()
            kept = torch.tensor(masks.get(name, [True] * len(down_RI)), device=down_RI.device)
            if kept.any():
                yield name, (down_RI[kept], up_OR[:, kept])

    def _masks(self) -> dict[str, list[bool]]:
        """Active components of every matrix that has pruned ones among its parameters, by the name of Λ."""
        return self._config.rank_pattern or {}

    @torch.no_grad()
    def _take_file_scale(self) -> None:
        for _, layer in adapted(self._model):
            before = effective_scale(layer)
            layer.scaling[_ADAPTER] = self._config.lora_alpha
            layer.lora_E[_ADAPTER].mul_(before / effective_scale(layer))

    def _scales(self) -> Iterator[tuple[str, Any, float]]:
        """(name, layer, scale of its active rank) of every adapted matrix."""
        ranks = self.ranks()
        for name, layer in adapted(self._model):
            yield name, layer, self._scale.of(ranks[name])

    @torch.no_grad()
    def _follow_ranks(self) -> None:
        """Give every matrix the scale of its active rank, once the first triplets are pruned."""
        if not self._config.rank_pattern:
            return
        for name, layer, scale in self._scales():
            factor = effective_scale(layer) / scale
            if not math.isclose(factor, 1.0, rel_tol=1e-12):
                layer.lora_E[_ADAPTER].mul_(factor)
                set_scale(layer, scale)
                self._rescaled[f"base_model.model.{name}.lora_E.{_ADAPTER}"] = factor

    def _mask(self) -> None:
        """Reset pruned triplets to zero, since the optimizer's momentum changes them."""
        values = {name: p for name, p in self._parameters.items() if "lora_E" in name}
        if not self._kept:
            self._kept = {
                name: torch.tensor(mask).view(-1, 1) for name, mask in self._config.rank_pattern.items()
            }
        with torch.no_grad():
            for name, value in values.items():
                value.mul_(self._kept[name].to(value.device))

    def _audit(self) -> None:
        active = sum(self.ranks().values())
        if active != self.budget:
            raise BudgetMissed(
                f"AdaLoRA froze with {active} active ranks, the budget is {self.budget}: scores tie or too "
                "few steps were "
                "taken to tell ranks apart. Train longer, or widen the schedule between warm-up and freeze."
            )

    def _audit_bytes(self) -> None:
        """Raise :class:`BudgetMissed` above the budget in ranks or in stored numbers (our own rules)."""
        ranks = self.ranks()
        active, numbers = sum(ranks.values()), self._stored_numbers(ranks)
        if active > self.budget or numbers > self._most_numbers:
            raise BudgetMissed(
                f"{active} ranks with {numbers} numbers are active after the freeze, the budget is "
                f"{self.budget} ranks with {self._most_numbers}"
            )


def matrix_name(key: str) -> str:
    """Matrix name of PEFT's mask key, for example ``model.layers.0.mlp.up_proj.lora_E.default``."""
    return key.removeprefix("base_model.model.").split(".lora_E")[0]
