"""Every rank rule on matrices of every kind of format: it trains, or it is refused before it is attached."""

from __future__ import annotations

import pytest
import torch
from bitrank.errors import UserError
from bitrank.spec.configs import CONFIGS, Config
from bitrank.spec.rule_interface import AttachOptions, RankRule
from bitrank.spec.tiny_models import TINY
from bitrank_adapters import AdapterError, AdapterScale
from bitrank_quant import apply_precision, block_matrices

CODES = ("nf4-dq", "nf3-dq", "int4-g32", "int3-g96", "int4-g64-dq", "sym4-g64")
FORMATS = ("bf16", "int8", "llm-int8", "fp8", *CODES)
RULES: dict[str, RankRule] = {
    type(config.rank).__name__: config.rank for config in CONFIGS.values() if isinstance(config, Config)
}
REFUSED = {
    "DecomposedRank": {"llm-int8"},  # by bitsandbytes on a CPU
    "PooledRank": set(FORMATS) - {"int4-g32"},  # groups of 96 do not divide the model's width of 64
    "LearnedStepRank": set(FORMATS) - {"int4-g32", "int3-g96"},
    "ScalesOnly": {"bf16", "llm-int8", "nf4-dq", "nf3-dq", "int4-g64-dq", "fp8"},
}


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("kind", RULES)
def test_rule_trains_in_a_format_or_is_refused(kind: str, text: str) -> None:
    if text in REFUSED.get(kind, set()):
        with pytest.raises((UserError, AdapterError), match=r"give|expected"):
            logits_before_and_after_a_step(RULES[kind], text)
        return
    before, after, trained = logits_before_and_after_a_step(RULES[kind], text)
    assert torch.isfinite(after).all() and trained > 0
    assert not torch.equal(before, after), "a step on the trained numbers changes what the model computes"


def logits_before_and_after_a_step(rule: RankRule, text: str) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Logits of a tiny model in the format ``text``, and the count of tensors with a gradient."""
    torch.manual_seed(0)
    model = TINY["tiny-llama"]()
    blocks = block_matrices(model)
    rule = rule.in_format(text)
    ranks = rule.assign_ranks(blocks)
    formats = {matrix.name: text for matrix in blocks}
    rule.check_formats(formats, ranks)
    apply_precision(model, formats, compute_dtype=torch.float32)
    attached = rule.attach(model, ranks, AttachOptions(AdapterScale(), [], seed=0, total_steps=20))
    ids = torch.arange(4, 14)[None]
    before = attached.model(input_ids=ids).logits
    before.square().mean().backward()
    trained = [part for part in attached.model.parameters() if part.grad is not None and part.grad.any()]
    with torch.no_grad():
        for part in trained:
            part -= 0.1 * part.grad.sign()
    attached.hook.after_step(1)
    return before.detach(), attached.model(input_ids=ids).logits.detach(), len(trained)
