"""Every arm combines with every initialization, quantizer and backend, or is refused with the reason.

Decided without training: specs are made, and adapters are attached to tiny models and started.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from bitrank.errors import UserError
from bitrank.run.adapter_init import choose_init
from bitrank.spec.configs import CONFIGS, ENCODER_DECODER, Config, PlannedArm
from bitrank.spec.inits import INITS
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.spec.pruned_rules import DynamicRank, LearnedScaleRank, ReducedRank
from bitrank.spec.rule_interface import AttachOptions
from bitrank.spec.system_rules import DecomposedRank, LearnedStepRank, PooledRank, ScalesOnly
from bitrank.spec.tiny_models import TINY
from bitrank_adapters import (
    ActivationStart,
    AdapterScale,
    CordaStart,
    GradientStart,
    GradientStep,
    ResidualStart,
)
from bitrank_quant import FORMATS, OVERRIDES, QUANTIZERS, apply_precision, block_matrices, weight_matrices

PRUNING = [
    name
    for name, arm in CONFIGS.items()
    if isinstance(arm, Config) and (arm.rank.triplets or isinstance(arm.rank, ReducedRank))
]
OWN_FORMATS = [name for name, arm in CONFIGS.items() if isinstance(arm, Config) and arm.rank.own_formats]
ONE_SCALE = [
    name
    for name, arm in CONFIGS.items()
    if isinstance(arm, Config) and isinstance(arm.rank, LearnedScaleRank)
]
IN_16_BITS = ("B-FP", "B-Ada")
WITH_ROUNDS = ("loftq", "lq-lora", "qera")
PLANNED = [name for name, arm in CONFIGS.items() if isinstance(arm, PlannedArm)]


def is_refused(arm: str, init: str, backend: str) -> bool:
    """The expected refusals, written apart from the code that decides them."""
    return (
        (arm in PRUNING and init in ("pissa", "corda", "lora-ga", "eva", "gora"))
        or (arm in ONE_SCALE and init != "default")
        or (arm in OWN_FORMATS and (init != "default" or backend != "auto"))
        or (
            init in ("pissa", "corda", "lora-ga", *WITH_ROUNDS)
            and (arm in IN_16_BITS or backend == "none")
            and arm not in PLANNED
        )
        or (arm == "LoftQ-5-Q4" and init not in WITH_ROUNDS)
        or (arm in PLANNED and init not in ("default", "lq-lora"))
    )


@pytest.mark.parametrize("arm", CONFIGS)
def test_every_combination_is_accepted_or_refused_with_the_reason(arm: str) -> None:
    for init, quantizer, backend in product(INITS, QUANTIZERS, OVERRIDES):
        chosen = {"init": init, "quantizer": quantizer, "quant_backend": backend}
        if is_refused(arm, init, backend):
            with pytest.raises(UserError, match=f"{arm} .*(init|quant_backend)=.* give|{arm} is planned for"):
                make_spec(PROFILES["smoke"], arm, "toy_articles", chosen)
        else:
            spec = make_spec(PROFILES["smoke"], arm, "toy_articles", chosen)
            assert (spec.init, spec.quantizer, spec.quant_backend) == (init, quantizer, backend)


@pytest.mark.parametrize("arm", ["B-Q4", "PiSSA-Q4", "GoRA-Q4", "EVA-Q4", "CorDA-Q4", "QA-LoRA-Q4"])
def test_rounds_of_a_start_without_rounds_are_refused(arm: str) -> None:
    with pytest.raises(UserError, match=f"{arm} does not .*init_rounds=5: .*expected one of loftq, lq-lora"):
        make_spec(PROFILES["smoke"], arm, "toy_articles", {"init_rounds": 5})
    assert make_spec(PROFILES["smoke"], arm, "toy_articles", {"init_rounds": 1}).init_rounds == 1


@pytest.mark.parametrize("arm", ["LoftQ-Q4", "LQ-LoRA-Q4", "QERA-Q4", "CLoQ-Q4", "Plan-Q4"])
def test_rounds_of_residual_starts_are_accepted(arm: str) -> None:
    assert make_spec(PROFILES["smoke"], arm, "toy_articles", {"init_rounds": 5}).init_rounds == 5


def test_a_repair_of_what_is_not_quantized_is_refused() -> None:
    """It would be plain LoRA under another name."""
    for arm, given in (("B-FP", {"init": "loftq"}), ("QERA-Q4", {"quant_backend": "none"})):
        with pytest.raises(
            UserError, match="stay in 16 bits here, and this start repairs quantization; give"
        ):
            make_spec(PROFILES["smoke"], arm, "toy_articles", given)


# Starts from measured data have random or plain data here.
STARTS_FROM_DATA = {
    "lq-lora": lambda ranks, shapes: ResidualStart(
        ranks,
        weights={name: (torch.ones(rows), torch.ones(columns)) for name, (rows, columns) in shapes.items()},
    ),
    "qera": lambda ranks, shapes: ResidualStart(ranks, inputs=lambda name: torch.eye(shapes[name][1])),
    "corda": lambda ranks, shapes: CordaStart(ranks, lambda name: torch.eye(shapes[name][1])),
    "lora-ga": lambda ranks, shapes: GradientStart(
        ranks, lambda name: torch.randn(shapes[name]), AdapterScale()
    ),
    "gora": lambda ranks, shapes: GradientStep(ranks, lambda name: torch.randn(shapes[name])),
    "eva": lambda ranks, shapes: ActivationStart(ranks, lambda name: torch.eye(shapes[name][1])),
}


def start_of(init: str, ranks: dict[str, int], blocks) -> object:
    """The initialization ``init`` for the matrices ``blocks``."""
    if init in STARTS_FROM_DATA:
        return STARTS_FROM_DATA[init](ranks, {m.name: m.shape for m in blocks})
    return choose_init(make_spec(PROFILES["smoke"], "B-Q4", "toy_articles", {"init": init}), ranks)


ONE_OF_EACH_RULE = {str(arm.rank): n for n, arm in CONFIGS.items() if isinstance(arm, Config)}


@pytest.mark.parametrize("name", ONE_OF_EACH_RULE.values())
def test_accepted_starts_give_an_adapted_model_that_computes(name: str) -> None:
    arm = CONFIGS[name]
    tiny = "tiny-t5" if arm.family == ENCODER_DECODER else "tiny-llama"
    ids = torch.tensor([[4, 5, 6]])
    inputs = {"input_ids": ids, **({"labels": ids} if arm.family == ENCODER_DECODER else {})}
    for init in (init for init in INITS if not is_refused(name, init, "auto")):
        model = TINY[tiny]()
        blocks = block_matrices(model)
        ranks = arm.rank.assign_ranks(blocks)
        if init == "lora-ga" and any(2 * ranks[m.name] > min(m.shape) for m in blocks):
            continue  # refused with the reason (packages/adapters), since shapes are known in the run only
        start = arm.rank.start(ranks, None) or start_of(init, ranks, blocks)
        with torch.no_grad():
            for block in blocks:
                weight = model.get_submodule(block.name).weight
                weight.copy_(start.split(block.name, weight.clone(), lambda weight_OI: weight_OI.bfloat16()))
        if arm.rank.trains_scales:
            formats = arm.precision.assign_formats([m for m in weight_matrices(model) if m.tied_to is None])
            apply_precision(model, formats, compute_dtype=torch.float32)
        scale = AdapterScale()
        adapted = arm.rank.attach(model, ranks, AttachOptions(scale, [], seed=0, total_steps=40))
        start.write(adapted.model)
        assert torch.isfinite(adapted.model(**inputs).logits).all()


def test_pooled_adapters_take_affine_groups_of_their_size_only() -> None:
    rule = PooledRank(8, 32)
    texts = [*FORMATS, "int2-g32", "int4-g32", "int8-g32", "int4-g32-dq", "sym4-g32", "nf4-g32"]
    for text in texts:
        if text in ("int2-g32", "int4-g32", "int8-g32"):
            rule.check_formats({"a": text}, {"a": 8})
        else:
            with pytest.raises(UserError, match=rf"expected a format such as int4-g32 for a, got {text}"):
                rule.check_formats({"a": text}, {"a": 8})
    rule.check_formats({"a": "bf16"}, {"a": 0})


def test_scales_train_in_formats_with_scales_stored_as_numbers_only() -> None:
    rule, both = ScalesOnly(), {"a": 0, "b": 0}
    for text in ("int2-g64", "int4-g32", "sym4-g64", "int8"):
        rule.check_formats({"a": text, "b": "bf16"}, both)
    for text in ("nf4", "nf4-dq", "fp4", "int4-g64-dq", "llm-int8", "fp8"):
        with pytest.raises(
            UserError, match=rf"the scales of a in {text} cannot be trained: .*; give int4-g64"
        ):
            rule.check_formats({"a": text, "b": "int4-g64"}, both)
    with pytest.raises(UserError, match=r"no matrix of the blocks is quantized, .*; give int4-g64"):
        rule.check_formats({"a": "bf16"}, both)


@pytest.mark.parametrize("text", ["nf4-dq", "int4-g64-dq", "int8", "sym4-g64", "bf16", "fp16"])
def test_learned_steps_are_refused_for_formats_without_trained_grids(text: str) -> None:
    with pytest.raises(UserError, match=rf"expected a format such as int4-g64, got {text}"):
        LearnedStepRank(8, text).check_formats({"a": text}, {"a": 8})


def test_learned_steps_take_the_formats_of_their_arm_only() -> None:
    rule = LearnedStepRank(8, "int3-g64")
    rule.check_formats({"a": "int3-g64", "b": "bf16"}, {"a": 8, "b": 0})
    for text in ("int4-g64", "int3-g32", "nf4-dq", "bf16"):
        with pytest.raises(UserError, match=rf"expected this format for a, got {text}"):
            rule.check_formats({"a": text}, {"a": 8})


@pytest.mark.parametrize(
    "rule",
    [
        DecomposedRank(4),
        PooledRank(4, 32),
        DynamicRank(6, 4),
        LearnedScaleRank(6, 4),
        LearnedStepRank(4, "int4-g64"),
        LearnedStepRank(4, "int3-g48"),
        CONFIGS["B-Ada"].rank,
    ],
)
def test_trained_and_stored_numbers_are_those_of_the_model(rule, tmp_path) -> None:
    """Forecasts and budgets count what the adapters have. Singular values are trained and not stored."""
    model = TINY["tiny-llama"]()
    blocks = block_matrices(model)
    ranks = rule.assign_ranks(blocks)
    attached = rule.attach(model, ranks, AttachOptions(AdapterScale(), [], seed=0, total_steps=40))
    trained = sum(p.numel() for p in attached.model.parameters() if p.requires_grad)
    values = sum(ranks.values()) if rule.triplets else 0
    assert trained == values + sum(rule.trained_numbers(m.shape, ranks[m.name]) for m in blocks)
    stored = sum(rule.stored_numbers(m.shape, ranks[m.name]) for m in blocks)
    assert attached.hook.stored_bytes() == 2 * stored


def test_the_two_methods_called_dora_have_two_names_and_sources() -> None:
    named = {name: arm for name, arm in CONFIGS.items() if "DoRA" in name}
    assert all(name not in ("DoRA", "DoRA-Q4") for name in named)
    assert {type(arm.rank) for arm in named.values()} == {DecomposedRank, DynamicRank}
    assert len({arm.source for arm in named.values()}) == len(named) == 2
