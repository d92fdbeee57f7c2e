from __future__ import annotations

import math

import pytest
from bitrank_planner.errors import PlanError
from bitrank_planner.heuristics import PRECISION_HEURISTICS

HIGH, LOW = "int8", "int4"


def high_names(name: str, matrices, *more) -> set[str]:
    formats = PRECISION_HEURISTICS[name](matrices, HIGH, LOW, *more)
    assert list(formats) == [m.name for m in matrices]
    assert set(formats.values()) <= {HIGH, LOW}
    return {n for n, fmt in formats.items() if fmt == HIGH}


def test_all_in_uses_one_format(decoder):
    assert set(PRECISION_HEURISTICS["all_in"](decoder, LOW).values()) == {LOW}


def test_role_and_depth_rules_select_their_matrices(decoder):
    assert high_names("embeddings_and_head_high", decoder) == {"embed", "head"}
    assert high_names("edges_high", decoder) == {"0.q", "0.up", "3.q", "3.up"}
    assert high_names("inner_high", decoder) == {"1.q", "1.up", "2.q", "2.up"}
    assert high_names("attention_high_ffn_low", decoder) == {f"{k}.q" for k in range(4)}
    assert high_names("ffn_high_attention_low", decoder) == {f"{k}.up" for k in range(4)}


def test_edges_are_those_of_each_stack(stacks):
    edges = {"encoder.layers.0.q", "encoder.layers.3.q", "decoder.layers.0.q", "decoder.layers.1.q"}
    assert high_names("edges_high", stacks) == edges


def test_rank_rules_select_matrices_below_the_mean(blocks):
    ranks = {m.name: 2 if m.layer == 1 else 8 for m in blocks}
    assert high_names("low_rank_more_bits", blocks, ranks) == {"1.q", "1.up"}
    assert high_names("low_rank_fewer_bits", blocks, ranks) == {m.name for m in blocks} - {"1.q", "1.up"}
    assert high_names("low_rank_more_bits", blocks, {"0.q": 4}) == {m.name for m in blocks} - {"0.q"}


def test_three_bits_for_the_less_sensitive_half(blocks):
    loss = {m.name: -float(i) for i, m in enumerate(blocks[:5])}
    formats = PRECISION_HEURISTICS["three_bits_on_least_sensitive"](blocks[:5], HIGH, loss)
    assert formats == {"0.q": HIGH, "0.up": HIGH, "1.q": HIGH, "1.up": "int3-g64-dq", "2.q": "int3-g64-dq"}
    assert (
        "int2-g64"
        in PRECISION_HEURISTICS["three_bits_on_least_sensitive"](blocks[:5], HIGH, loss, "int2-g64").values()
    )


def test_encoder_and_cross_attention_get_the_high_format(encoder_decoder):
    assert high_names("encoder_high_decoder_low", encoder_decoder) == {"encoder.0.q", "decoder.0.cross"}


def test_missing_inputs_of_a_rule_raise(decoder, blocks, encoder_decoder):
    with pytest.raises(PlanError, match="called encoder"):
        high_names("encoder_high_decoder_low", decoder)
    with pytest.raises(PlanError, match="called decoder"):
        high_names("encoder_high_decoder_low", encoder_decoder[:2])
    with pytest.raises(PlanError, match="role embedding or head"):
        high_names("embeddings_and_head_high", blocks)
    with pytest.raises(PlanError, match="three layers or more, got 1"):
        high_names("edges_high", encoder_decoder)
    with pytest.raises(PlanError, match="every matrix has rank 0"):
        high_names("low_rank_more_bits", blocks, {})
    with pytest.raises(PlanError, match="no measured added loss for 8 of 8"):
        PRECISION_HEURISTICS["three_bits_on_least_sensitive"](blocks, HIGH, {})
    with pytest.raises(PlanError, match="not a number"):
        PRECISION_HEURISTICS["three_bits_on_least_sensitive"](
            blocks, HIGH, dict.fromkeys((m.name for m in blocks), math.nan)
        )
