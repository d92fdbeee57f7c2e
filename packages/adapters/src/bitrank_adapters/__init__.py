"""Rank: plans, PEFT models built from them, and what happens to ranks while training."""

from bitrank_adapters.attach import AdaLora, adapter_bytes, attach_adalora, attach_lora
from bitrank_adapters.controllers import AdaLoraRanks, FixedRanks, adapted
from bitrank_adapters.errors import AdapterError, BudgetMissed
from bitrank_adapters.fused import fuse
from bitrank_adapters.plans import RankPlan, check_ranks, role_ranks, uniform_ranks

__version__ = "0.1.0"
__all__ = [
    "AdaLora",
    "AdaLoraRanks",
    "AdapterError",
    "BudgetMissed",
    "FixedRanks",
    "RankPlan",
    "adapted",
    "adapter_bytes",
    "attach_adalora",
    "attach_lora",
    "check_ranks",
    "fuse",
    "role_ranks",
    "uniform_ranks",
]
