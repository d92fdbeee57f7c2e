"""PEFT models from rank plans.

The factor on an adapter's output follows from its rank by one scale policy for the whole model
(:mod:`~bitrank_adapters.scales`); PEFT's ``rank_pattern`` and ``alpha_pattern`` carry it, so stock PEFT loads
the saved adapter. Adapters are fp32. The base is frozen, its norms compute in fp32, and a newly initialized
head is trained in full in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, TaskType, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.pytorch_utils import Conv1D

from bitrank_adapters.errors import AdapterError
from bitrank_adapters.fused.norms import norms_in_fp32
from bitrank_adapters.plans import RankPlan, check_ranks, positive_ranks
from bitrank_adapters.scales import REFERENCE_RANK, AdapterScale

DEFAULT_SCALE = AdapterScale()
# Prunings that a short training has at least between warm-up and freeze: the interval is given in steps, the
# warm-up and the freeze in shares of them.
_LEAST_CUTS = 2
# Model classes of transformers by PEFT task type.
_PEFT_HEADS = {"classifier", "score"}  # modules that PeftModelForSequenceClassification trains whole
_TASK_TYPES = {
    TaskType.SEQ_CLS: MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    TaskType.QUESTION_ANS: MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    TaskType.SEQ_2_SEQ_LM: MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    TaskType.CAUSAL_LM: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}


@dataclass(frozen=True)
class AdaLora:
    """AdaLoRA schedule (Zhang et al. 2023): from rank ``init_r`` to an average rank of ``target_r``.

    The budget (sum of ranks) is constant for the share ``warm`` of the steps, then decreases as a cubic, and
    is frozen for the last share ``final``. ``every`` is the number of steps between two prunings, at most
    half of the steps between warm-up and freeze. ``orthogonality`` is the weight of the regularizer (0.1 in
    the authors' scripts).
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
    model: nn.Module,
    plan: RankPlan,
    *,
    scale: AdapterScale = DEFAULT_SCALE,
    heads: Sequence[str] = (),
    seed: int = 0,
) -> PeftModel:
    """Attach LoRA with one rank per matrix; ``heads`` names newly initialized modules to train in full.

    A matrix of rank 0 gets no adapter. Raises :class:`AdapterError` if the plan does not fit the model, or if
    it has rank 0 everywhere and there is no head to train.
    """
    check_ranks(plan, shapes_of(model, plan), heads)
    return attach_config(model, lora_config(plan, scale, heads), scale, heads, seed)


def lora_config(plan: RankPlan, scale: AdapterScale, heads: Sequence[str] = ()) -> LoraConfig:
    """PEFT configuration of a rank plan.

    The most frequent rank and its α are the defaults, patterns hold the others. With rank 0 everywhere only
    the heads train, which PEFT supports through a target that matches no module.
    """
    ranks = positive_ranks(plan)
    counted = list(ranks.values()) or [REFERENCE_RANK]
    usual = max(set(counted), key=counted.count)
    alphas = {name: scale.alpha(rank) for name, rank in ranks.items()}
    return LoraConfig(
        r=usual,
        lora_alpha=scale.alpha(usual),  # type: ignore[arg-type]
        rank_pattern={name: rank for name, rank in ranks.items() if rank != usual},
        alpha_pattern={name: alpha for name, alpha in alphas.items() if alpha != scale.alpha(usual)},
        target_modules=list(ranks) or DUMMY_TARGET_MODULES,
        modules_to_save=list(heads) or None,
        lora_dropout=0.0,
    )


def attach_adalora(
    model: nn.Module,
    names: list[str],
    schedule: AdaLora,
    *,
    total_steps: int,
    scale: AdapterScale = DEFAULT_SCALE,
    heads: Sequence[str] = (),
    seed: int = 0,
) -> PeftModel:
    """Attach AdaLoRA to the matrices ``names`` for ``total_steps`` optimizer steps in all.

    The scale starts as that of ``schedule.init_r``; :class:`~bitrank_adapters.AdaLoraRanks` changes it with
    the rank of each matrix.

    Raises :class:`AdapterError` if the steps leave no pruning between warm-up and freeze.
    """
    check_ranks(dict.fromkeys(names, schedule.init_r), shapes_of(model, names))
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
        deltaT=min(schedule.every, max(1, (total_steps - final - warm) // _LEAST_CUTS)),
        total_step=total_steps,
        orth_reg_weight=schedule.orthogonality,
        lora_alpha=scale.alpha(schedule.init_r),  # type: ignore[arg-type]
        target_modules=list(names),
        modules_to_save=list(heads) or None,
        lora_dropout=0.0,
    )
    return attach_config(model, config, scale, heads, seed)


def attach_config(
    model: nn.Module, config: LoraConfig, scale: AdapterScale, heads: Sequence[str], seed: int
) -> PeftModel:
    """Attach adapters of PEFT's ``config`` to ``model``; parameters that train are fp32."""
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # same initialization in every configuration, whatever was sampled before
        peft_model = get_peft_model(model, config, autocast_adapter_dtype=False)
    assert isinstance(peft_model, PeftModel)
    # Set after construction: otherwise PEFT selects further modules to train in full by name.
    peft_model.peft_config["default"].task_type = None if _is_in_peft_head(heads) else task_type(model)
    for name, parameter in peft_model.named_parameters():
        if ".ranknum." in name:
            # A count, not a weight: PEFT leaves it trainable if the base is 16-bit, and training it would
            # change the adapter's scale.
            parameter.requires_grad_(False)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    peft_model.adapter_scale = scale  # type: ignore[assignment]  # AdaLoRA's hook follows it
    norms_in_fp32(peft_model)
    for head in heads:
        _head_in_fp32(peft_model, head)
    return peft_model


def _is_in_peft_head(heads: Sequence[str]) -> bool:
    """Whether a head is inside a module that PEFT's class for classification trains whole on its own.

    RoBERTa's ``classifier.dense`` is inside ``classifier``, and PEFT would look for the weights of both. Its
    general class trains the modules that the adapter names.
    """
    return any(set(head.split(".")[:-1]) & _PEFT_HEADS for head in heads)


def task_type(model: Any) -> TaskType | None:
    """PEFT task type of ``model``, by which ``AutoPeftModel`` finds the class of its base.

    None if there is none, or if PEFT's class for it would change the model's outputs.
    """
    kind = type(model).__name__
    found = next((task for task, names in _TASK_TYPES.items() if kind in names.values()), None)
    # PEFT's class for question answering does not pass ``token_type_ids`` on; its general class does.
    if found == TaskType.QUESTION_ANS and getattr(model.config, "type_vocab_size", 0) == 2:
        return None
    return found


def _head_in_fp32(model: nn.Module, head: str) -> None:
    """Cast the inputs of a trained head to fp32, since the frozen body may output 16-bit values."""
    for name, module in model.named_modules():
        if name.endswith(f"{head}.modules_to_save.default"):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))


def shapes_of(model: nn.Module, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear module of ``model``, from its features: quantized layers store codes."""
    shapes = {}
    for name, module in model.named_modules():
        if hasattr(module, "in_features") and hasattr(module, "out_features"):
            shapes[name] = (int(module.out_features), int(module.in_features))  # type: ignore[arg-type]
        elif isinstance(module, Conv1D):
            shapes[name] = (int(module.nf), int(module.nx))
    return shapes
