"""PEFT models from rank plans.

Scale policy, the same for every configuration: the adapter's output is multiplied by one factor ``scale`` at
any rank (α = scale · r, for AdaLoRA α = scale · initial r), so configurations differ in bits and ranks only.
Adapters are fp32. The base is frozen, its norms compute in fp32, and a newly initialized head is trained in
full in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.pytorch_utils import Conv1D

from bitrank_adapters.errors import AdapterError
from bitrank_adapters.fused.norms import norms_in_fp32
from bitrank_adapters.plans import RankPlan, check_ranks


@dataclass(frozen=True)
class AdaLora:
    """AdaLoRA schedule (Zhang et al. 2023): from rank ``init_r`` to an average rank of ``target_r``.

    The budget (sum of ranks) is constant for the share ``warm`` of the steps, then decreases as a cubic, and
    is frozen for the last share ``final``. ``every`` is the number of steps between two prunings,
    ``orthogonality`` the weight of the regularizer (0.1 in the authors' scripts).
    """

    init_r: int = 12
    target_r: int = 4
    warm: float = 0.1
    final: float = 0.4
    every: int = 5
    orthogonality: float = 0.1

    def __post_init__(self) -> None:
        if not 1 <= self.target_r < self.init_r:
            raise AdapterError(
                f"AdaLoRA needs 1 ≤ target_r < init_r, got init_r={self.init_r} and target_r={self.target_r}"
            )
        if self.warm < 0 or self.final <= 0 or self.warm + self.final >= 1:
            raise AdapterError(
                f"AdaLoRA needs 0 ≤ warm, 0 < final and warm + final < 1, got {self.warm} and {self.final}"
            )


def attach_lora(
    model: nn.Module, plan: RankPlan, *, scale: float = 2.0, heads: Sequence[str] = (), seed: int = 0
) -> PeftModel:
    """Attach LoRA with one rank per matrix; ``heads`` names newly initialized modules to train in full.

    Raises :class:`AdapterError` if the plan does not fit the model.
    """
    check_ranks(plan, _shapes(model, plan))
    return _attach(model, lora_config(plan, scale, heads), heads, seed)


def lora_config(plan: RankPlan, scale: float, heads: Sequence[str] = ()) -> LoraConfig:
    """PEFT configuration of a rank plan.

    The most frequent rank is the default, patterns hold the others; α = scale · r for every matrix.
    """
    usual = max(set(plan.values()), key=list(plan.values()).count)
    return LoraConfig(
        r=usual,
        lora_alpha=scale * usual,  # type: ignore[arg-type]
        rank_pattern={name: rank for name, rank in plan.items() if rank != usual},
        alpha_pattern={name: scale * rank for name, rank in plan.items() if rank != usual},
        target_modules=list(plan),
        modules_to_save=list(heads) or None,
        lora_dropout=0.0,
    )


def attach_adalora(
    model: nn.Module,
    names: list[str],
    schedule: AdaLora,
    *,
    total_steps: int,
    scale: float = 2.0,
    heads: Sequence[str] = (),
    seed: int = 0,
) -> PeftModel:
    """Attach AdaLoRA to the matrices ``names`` for ``total_steps`` optimizer steps in all.

    Raises :class:`AdapterError` if the steps leave no pruning between warm-up and freeze.
    """
    check_ranks(dict.fromkeys(names, schedule.init_r), _shapes(model, names))
    warm, final = round(schedule.warm * total_steps), max(1, round(schedule.final * total_steps))
    if total_steps - final - warm < 2:
        raise AdapterError(
            f"{total_steps} steps are too few for AdaLoRA: no step is left between warm-up and freeze; give "
            "10 or more"
        )
    config = AdaLoraConfig(
        init_r=schedule.init_r,
        target_r=schedule.target_r,
        tinit=warm,
        tfinal=final,
        deltaT=schedule.every,
        total_step=total_steps,
        orth_reg_weight=schedule.orthogonality,
        lora_alpha=scale * schedule.init_r,  # type: ignore[arg-type]
        target_modules=list(names),
        modules_to_save=list(heads) or None,
        lora_dropout=0.0,
    )
    return _attach(model, config, heads, seed)


def adapter_bytes(model: PeftModel) -> int:
    """Bytes added to the base: adapter parameters, AdaLoRA's rank counts, and trained copies of heads."""
    added = (".lora_", ".ranknum.", ".modules_to_save.")
    return sum(
        p.numel() * p.element_size()
        for name, p in model.named_parameters()
        if any(part in name for part in added)
    )


def _attach(model: nn.Module, config: LoraConfig, heads: Sequence[str], seed: int) -> PeftModel:
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # same initialization in every configuration, whatever was sampled before
        peft_model = get_peft_model(model, config, autocast_adapter_dtype=False)
    assert isinstance(peft_model, PeftModel)
    # Set after construction: otherwise PEFT selects further modules to train in full by name.
    peft_model.peft_config["default"].task_type = task_type(model)
    for name, parameter in peft_model.named_parameters():
        if ".ranknum." in name:
            # A count, not a weight: PEFT leaves it trainable if the base is 16-bit, and training it would
            # change the adapter's scale.
            parameter.requires_grad_(False)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    norms_in_fp32(peft_model)
    for head in heads:
        _head_in_fp32(peft_model, head)
    return peft_model


def task_type(model: nn.Module) -> TaskType | None:
    """PEFT task type of ``model``, by which ``AutoPeftModel`` finds the class of its base."""
    kind = type(model).__name__
    if kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values():
        return TaskType.SEQ_CLS
    return TaskType.CAUSAL_LM if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() else None


def _head_in_fp32(model: nn.Module, head: str) -> None:
    """Cast the inputs of a trained head to fp32, since the frozen body may output 16-bit values."""
    for name, module in model.named_modules():
        if name.endswith(f"{head}.modules_to_save.default"):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))


def _shapes(model: nn.Module, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear module of ``model``, from its features: quantized layers store codes."""
    shapes = {}
    for name, module in model.named_modules():
        if hasattr(module, "in_features") and hasattr(module, "out_features"):
            shapes[name] = (int(module.out_features), int(module.in_features))  # type: ignore[arg-type]
        elif isinstance(module, Conv1D):
            shapes[name] = (int(module.nf), int(module.nx))
    return shapes
