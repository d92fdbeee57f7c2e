"""LoRA adapters: rank plans, PEFT models built from them, and rank changes during training."""

from bitrank_adapters.activation_init import ActivationStart
from bitrank_adapters.adaptive_ranks import AdaLoraRanks
from bitrank_adapters.attach import AdaLora, attach_adalora, attach_lora
from bitrank_adapters.data_ranks import ranks_by_importance, ranks_by_variance
from bitrank_adapters.dropout import set_dropout
from bitrank_adapters.dynamic_rank import Dynamic, DynamicRanks, attach_dynamic
from bitrank_adapters.errors import AdapterError, BudgetMissed
from bitrank_adapters.export import LowRank, SavedAdapter, read_adapter, save_as_lora
from bitrank_adapters.fused.fuse import fuse
from bitrank_adapters.fused.norms import is_norm
from bitrank_adapters.gradient_init import GradientStart, GradientStep
from bitrank_adapters.learned_scales import LearnedScaleRanks, LearnedScales, attach_learned_scales
from bitrank_adapters.learned_steps import Codes, LearnedSteps, StepStart, attach_learned_steps
from bitrank_adapters.lowrank import Factors, best_low_rank, weighted_norm
from bitrank_adapters.part_start import Part, PartStart
from bitrank_adapters.plans import RankPlan, check_ranks, role_ranks, uniform_ranks
from bitrank_adapters.pooled import PooledRanks, attach_pooled
from bitrank_adapters.principal_init import CordaStart, PrincipalStart
from bitrank_adapters.rank_hooks import FixedRanks, adapted
from bitrank_adapters.reduce import ReducedRanks
from bitrank_adapters.residual_init import AdapterStart, ResidualStart
from bitrank_adapters.scales import (
    REFERENCE_RANK,
    SCALE_POLICIES,
    AdapterScale,
    ScalePolicy,
    effective_scale,
)
from bitrank_adapters.shrink import ShrinkingRanks
from bitrank_adapters.stored import adapter_bytes, adapter_memory, round_adapter
from bitrank_adapters.trained_scales import TrainedScales, attach_frozen, read_scales
from bitrank_adapters.trainer_callback import AdaLoraCallback
from bitrank_adapters.weight_decomposed import attach_weight_decomposed
from bitrank_adapters.whole_base import over_whole_base, write_adapter

__version__ = "0.1.0"
__all__ = [
    "REFERENCE_RANK",
    "SCALE_POLICIES",
    "ActivationStart",
    "AdaLora",
    "AdaLoraCallback",
    "AdaLoraRanks",
    "AdapterError",
    "AdapterScale",
    "AdapterStart",
    "BudgetMissed",
    "Codes",
    "CordaStart",
    "Dynamic",
    "DynamicRanks",
    "Factors",
    "FixedRanks",
    "GradientStart",
    "GradientStep",
    "LearnedScaleRanks",
    "LearnedScales",
    "LearnedSteps",
    "LowRank",
    "Part",
    "PartStart",
    "PooledRanks",
    "PrincipalStart",
    "RankPlan",
    "ReducedRanks",
    "ResidualStart",
    "SavedAdapter",
    "ScalePolicy",
    "ShrinkingRanks",
    "StepStart",
    "TrainedScales",
    "adapted",
    "adapter_bytes",
    "adapter_memory",
    "attach_adalora",
    "attach_dynamic",
    "attach_frozen",
    "attach_learned_scales",
    "attach_learned_steps",
    "attach_lora",
    "attach_pooled",
    "attach_weight_decomposed",
    "best_low_rank",
    "check_ranks",
    "effective_scale",
    "fuse",
    "is_norm",
    "over_whole_base",
    "ranks_by_importance",
    "ranks_by_variance",
    "read_adapter",
    "read_scales",
    "role_ranks",
    "round_adapter",
    "save_as_lora",
    "set_dropout",
    "uniform_ranks",
    "weighted_norm",
    "write_adapter",
]
