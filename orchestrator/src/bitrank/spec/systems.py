"""Arms of published systems, which studies compare with, and arms for encoder-decoders.

``docs/systems.md`` describes them.
"""

from __future__ import annotations

from bitrank.spec import pruned_rules, rules, system_rules
from bitrank.spec.config import Config

ENCODER_DECODER = "encoder-decoder"  # family of the arms for models with an encoder and a decoder
SYSTEM = "system"  # family of the published systems
SYSTEMS: dict[str, Config] = {
    "Encoder-8": Config(
        rules.EncoderHigh("int8", "nf4-dq"),
        rules.FixedRank(8),
        ENCODER_DECODER,
        "encoder int8, decoder NF4, rank 8",
    ),
    "Cross-8": Config(
        rules.CrossAttentionHigh("int8", "nf4-dq"),
        rules.FixedRank(8),
        ENCODER_DECODER,
        "cross-attention int8, the rest of the blocks NF4, rank 8",
    ),
    "LoRA-Attention": Config(
        rules.BlocksIn("nf4-dq"),
        rules.RankOn("attention", 8),
        SYSTEM,
        "NF4 blocks, adapters of rank 8 on attention only",
        "selective LoRA; Hu et al. 2022, section 4.2",
    ),
    "AdaLoRA-Attention": Config(
        rules.BlocksIn("nf4-dq"),
        pruned_rules.AdaptiveRankOn(12, 4),
        SYSTEM,
        "NF4 blocks, AdaLoRA on attention only",
        "AdaLoRA; Zhang et al. 2023",
    ),
    "LoRA-FFN": Config(
        rules.BlocksIn("nf4-dq"),
        rules.RankOn("ffn", 8),
        SYSTEM,
        "NF4 blocks, adapters of rank 8 on feed-forward parts only",
        "selective LoRA; He et al. 2022, section 4.4",
    ),
    "rsLoRA-Q4": Config(
        rules.BlocksIn("nf4-dq"),
        rules.FixedRank(32),  # at rank 8 every scale policy has the same scale
        SYSTEM,
        "NF4 blocks, rank 32, scale of an adapter by 1/√r",
        "rsLoRA; Kalajdzievski 2023",
        {"scale_policy": "rslora"},
    ),
    "LoftQ-Q4": Config(
        rules.BlocksIn("nf4-dq"),
        rules.FixedRank(8),
        SYSTEM,
        "NF4 blocks, adapters start as the residual of quantization",
        "LoftQ; Li et al. 2024",
        {"init": "loftq"},
    ),
    "LQ-LoRA-Q4": Config(
        rules.BlocksIn("nf4-dq"),
        rules.FixedRank(8),
        SYSTEM,
        "NF4 blocks, adapters start as the residual weighted by the Fisher information",
        "LQ-LoRA; Guo et al. 2024, section 3.3",
        {"init": "lq-lora"},
    ),
    "PiSSA-Q4": Config(
        rules.BlocksIn("nf4-dq"),
        rules.FixedRank(8),
        SYSTEM,
        "NF4 of each matrix without its 8 largest singular triplets, which the adapter starts as",
        "PiSSA; Meng et al. 2024",
        {"init": "pissa"},
    ),
    "GPTQ-Q4": Config(
        rules.BlocksIn("int4-g64"),
        rules.FixedRank(8),
        SYSTEM,
        "int4 blocks by GPTQ, rank 8",
        "GPTQ; Frantar et al. 2023",
        {"quantizer": "gptq"},
    ),
    "DoRA-Weight-Q4": Config(
        rules.BlocksIn("nf4-dq"),
        system_rules.DecomposedRank(8),
        SYSTEM,
        "NF4 blocks, adapters of rank 8 on the direction of each row, and a trained length per row",
        "DoRA, weight-decomposed; Liu et al. 2024",
    ),
    "DoRA-Dynamic-Q4": Config(
        rules.BlocksIn("nf4-dq"),
        pruned_rules.DynamicRank(12, 8),
        SYSTEM,
        "NF4 blocks, rank 12 pruned to a mean of 8 by the norms of rank-one components",
        "DoRA, dynamic rank; Mao et al. 2024",
    ),
    "QA-LoRA-Q4": Config(
        rules.BlocksIn("int4-g32"),
        system_rules.PooledRank(8, 32),
        SYSTEM,
        "int4 blocks in groups of 32, adapters of rank 8 on sums over groups, which merge exactly",
        "QA-LoRA; Xu et al. 2024",
    ),
    "PARA-Q4": Config(
        rules.BlocksIn("nf4-dq"),
        pruned_rules.ReducedRank(8),
        SYSTEM,
        "NF4 blocks, rank 32 reduced to the bytes of rank 8 after training",
        "PARA; arXiv:2604.27796, 2026",
    ),
    "Scales-Q4": Config(
        rules.BlocksIn("int4-g64"),
        system_rules.ScalesOnly(),
        SYSTEM,
        "int4 blocks without adapters, scales and minima of their groups are trained",
        "PEQA; Kim et al. 2023",
        {"learning_rate": 1e-4},  # steps of the size of adapters' would exceed the scales themselves
    ),
    "LoftQ-5-Q4": Config(
        rules.BlocksIn("nf4-dq"),
        rules.FixedRank(8),
        SYSTEM,
        "as LoftQ-Q4, after five alternating rounds",
        "LoftQ; Li et al. 2024, algorithm 1",
        {"init": "loftq", "init_rounds": 5},
    ),
    "QERA-Q4": Config(
        rules.BlocksIn("nf4-dq"),
        rules.FixedRank(8),
        SYSTEM,
        "NF4 blocks, adapters start as the residual that changes outputs most",
        "QERA; Zhang et al. 2024",
        {"init": "qera"},
    ),
    "CLoQ-Q4": Config(
        rules.BlocksIn("int4-g64"),
        rules.FixedRank(8),
        SYSTEM,
        "int4 blocks by GPTQ, adapters start as the residual that changes outputs most",
        "CLoQ; Deng et al. 2025",
        {"init": "qera", "quantizer": "gptq"},
    ),
    "EVA-Q4": Config(
        rules.BlocksIn("nf4-dq"),
        rules.FixedRank(8),
        SYSTEM,
        "NF4 blocks, ranks by variance of inputs in the bytes of rank 8, adapters start at its directions",
        "EVA; Paischer et al. 2024",
        {"init": "eva", "scale_policy": "constant"},
    ),
    "LoRA-GA-Q4": Config(
        rules.BlocksIn("nf4-dq"),
        rules.FixedRank(8),
        SYSTEM,
        "NF4 of each matrix without 8 singular directions of its gradient, which the adapter starts as",
        "LoRA-GA; Wang et al. 2024",
        {"init": "lora-ga"},
    ),
    "CorDA-Q4": Config(
        rules.BlocksIn("nf4-dq"),
        rules.FixedRank(8),
        SYSTEM,
        "NF4 of each matrix without the 8 directions of the largest outputs, which the adapter starts as",
        "CorDA; Yang et al. 2024",
        {"init": "corda"},
    ),
    "GoRA-Q4": Config(
        rules.BlocksIn("nf4-dq"),
        rules.FixedRank(8),
        SYSTEM,
        "NF4 blocks, ranks by importance in the bytes of rank 8, adapters start as a step of the gradient",
        "GoRA; He et al. 2025",
        {"init": "gora", "scale_policy": "constant"},
    ),
    "L4Q-Q4": Config(
        rules.BlocksIn("int4-g64"),
        system_rules.LearnedStepRank(8, "int4-g64"),
        SYSTEM,
        "int4 blocks with trained steps and adapters of rank 8 inside of the rounding; no adapter is left",
        "L4Q; Jeon et al. 2025",
    ),
    "ARD-LoRA-Q4": Config(
        rules.BlocksIn("nf4-dq"),
        pruned_rules.LearnedScaleRank(12, 8),
        SYSTEM,
        "NF4 blocks, rank 12 pruned to a mean of 8 in proportion to a trained scale of each matrix",
        "ARD-LoRA; Shinwari and Usama 2025",
    ),
}
