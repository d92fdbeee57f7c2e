"""Rank hooks of the training loop: constant ranks (LoRA) and AdaLoRA's pruning.

The training loop calls one hook with these methods and is independent of the adaptation method. ``step``
counts optimizer steps from 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from bitrank_adapters.errors import AdapterError, BudgetMissed
from bitrank_adapters.importance import OffOrthogonal, update_importance
from bitrank_adapters.scales import AdapterScale, effective_scale, set_scale
from bitrank_adapters.stored import STORED_BYTES, STORED_DTYPE, adapter_bytes, round_adapter, saved_parameters

_ADAPTER = "default"


class FixedRanks:
    """LoRA: ranks stay as planned."""

    def __init__(self, model: PeftModel) -> None:
        self._model: Any = model
        self._is_stored_form = False

    def penalty(self) -> Tensor | None:
        """Differentiable term to add to the task loss; None if there is none."""
        return None

    def after_step(self, step: int) -> None:
        """Run after each optimizer step, while its gradients still exist."""

    def settled(self, step: int) -> bool:
        """Whether ranks are final after ``step``."""
        return True

    def ranks(self) -> dict[str, int]:
        """Active rank of every adapted matrix."""
        return {name: module.r[_ADAPTER] for name, module in adapted(self._model)}

    def state(self) -> tuple[dict[str, Tensor], str]:
        """Tensors and JSON text from which :meth:`restore` continues with the same numbers."""
        return {}, "{}"

    def restore(self, tensors: dict[str, Tensor], text: str) -> None: ...

    def resized(self) -> dict[str, tuple[int, Tensor]] | None:
        """Changes of the trainable parameters since the last call; None if there are none.

        See :class:`~bitrank_adapters.shrink.ShrinkingRanks`.
        """
        return None

    def rescaled(self) -> dict[str, float] | None:
        """{parameter name: factor} of trainable parameters that were multiplied since the last call.

        None if there are none. The model's output is unchanged; gradients and moments change by the inverse.
        """
        return None

    def finish(self) -> None:
        """Run once after training, when the model has its final parameters: here nothing remains to do."""

    @contextmanager
    def as_stored(self) -> Iterator[None]:
        """Inside, the model computes with the adapter as its file holds it: every number rounded to bf16.

        Parameters and scales come back afterwards. Nested uses change nothing more.
        """
        if self._is_stored_form:
            yield
            return
        kept = {p: p.detach().clone() for p in saved_parameters(self._model).values()}
        scalings = {layer: layer.scaling[_ADAPTER] for _, layer in adapted(self._model)}
        self._is_stored_form = True
        try:
            self._take_stored_form()
            yield
        finally:
            self._is_stored_form = False
            for parameter, value in kept.items():
                parameter.data.copy_(value)
            for layer, scaling in scalings.items():
                layer.scaling[_ADAPTER] = scaling

    def stored_bytes(self) -> int:
        """Bytes of all tensors in the file that :meth:`save` writes."""
        return adapter_bytes(self._model)

    def save(self, folder: Path) -> None:
        """Save the adapter in PEFT's format (safetensors, bf16)."""
        with self.as_stored():
            parameters = saved_parameters(self._model)
            rounded = {name: p.detach().to(STORED_DTYPE) for name, p in parameters.items()}
            self._model.save_pretrained(str(folder), state_dict=rounded, save_embedding_layers=False)

    def _take_stored_form(self) -> None:
        round_adapter(self._model)


class AdaLoraRanks(FixedRanks):
    """AdaLoRA: allocates ranks after each step, adds the orthogonality term, audits the budget.

    PEFT's allocator does the arithmetic (Zhang et al. 2023, equations 8 to 12). Three additions: its moving
    averages are part of the state, so that a resumed run continues with the same numbers; the run fails
    at the freeze if the active ranks miss the budget; and the scale of each matrix follows its active rank by
    the policy of :func:`~bitrank_adapters.attach_adalora`, as it does for LoRA of that rank.

    A new scale divides Λ by the same factor, so the output does not change and neither do PEFT's importances
    |w ∂L/∂w|; only the size of later steps does. Files have PEFT's own scale α/r of the initial rank, and Λ
    takes the difference.
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
        """weight · mean over P and Q of ‖PᵀP − I‖_F (Zhang et al. 2023, equation 4)."""
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
        ranks, pruned_numbers = self.ranks(), 0
        for name, layer in adapted(self._model):
            down_RI, up_OR = layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]
            pruned_numbers += (len(down_RI) - ranks[name]) * (down_RI.shape[1] + up_OR.shape[0] + 1)
        return adapter_bytes(self._model) - STORED_BYTES * pruned_numbers

    def save(self, folder: Path) -> None:
        """Save the adapter as PEFT's AdaLoRA, without pruned triplets."""
        pattern = self._config.rank_pattern
        try:
            super().save(folder)
        finally:
            self._config.rank_pattern = pattern  # PEFT removes the adapter's name from its keys

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

    def _take_stored_form(self) -> None:
        self._take_file_scale()
        super()._take_stored_form()

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


def scale_of(model: PeftModel) -> AdapterScale:
    """The scale that ``model`` was attached with.

    Raises :class:`AdapterError` for a model that this package did not attach adapters to.
    """
    scale = getattr(model, "adapter_scale", None)
    if not isinstance(scale, AdapterScale):
        raise AdapterError("this model's adapters have no scale policy; make it with attach_adalora")
    return scale


def keep_loss_plain(model: PeftModel) -> None:
    """Stop PEFT from adding the orthogonality term to the ``loss`` of the model's output.

    PEFT adds it to every micro-batch, so it would count once per micro-batch instead of once per step.
    """
    tuner: Any = model.base_model

    def forward(*args: Any, **kwargs: Any) -> Any:
        return tuner.model.forward(*args, **kwargs)

    tuner.forward = forward


def adapted(model: PeftModel) -> list[tuple[str, Any]]:
    """(matrix name in the unadapted model, adapter layer) of every adapted matrix."""
    prefix = "base_model.model."
    return [
        (name.removeprefix(prefix), module)
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and _ADAPTER in module.lora_A
    ]


def matrix_name(key: str) -> str:
    """Matrix name of PEFT's mask key, for example ``model.layers.0.mlp.up_proj.lora_E.default``."""
    return key.removeprefix("base_model.model.").split(".lora_E")[0]
