"""Formats that a runtime can store, ties of matrices that it fuses, and a largest rank."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bitrank.errors import UserError
from bitrank.planning.costs import FORMATS, RANKS, Choices
from bitrank.planning.make_plan import check_planner
from bitrank.planning.restrictions import (
    RUNTIMES,
    TIES,
    formats_for,
    limit_rank,
    restricted,
    tied_groups,
    ties_for,
)
from bitrank_planner import Item, Option, PlanError, Problem
from bitrank_quant import parse_format

SHAPE = (6, 128)
WEIGHTS = SHAPE[0] * SHAPE[1]


@pytest.mark.parametrize(("fmt", "block_bytes"), [("int4-g32", 20), ("int5-g32", 24)])
def test_formats_for_gguf_take_the_bytes_of_its_blocks_of_32(fmt: str, block_bytes: int) -> None:
    """ggml-common.h: block_q4_1 and block_q5_1 have 20 and 24 bytes."""
    assert parse_format(fmt).nbytes(SHAPE) == WEIGHTS // 32 * block_bytes


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_formats_for_mlx_take_codes_and_16_bit_scale_and_bias(bits: int, group: int) -> None:
    fmt = f"int{bits}-g{group}"
    assert formats_for("mlx", [fmt], FORMATS) == (fmt,)
    assert parse_format(fmt).nbytes(SHAPE) == WEIGHTS * bits // 8 + WEIGHTS // group * 4


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_formats_for_vllm_take_codes_and_a_16_bit_scale(bits: int, group: int) -> None:
    fmt = f"sym{bits}-g{group}"
    assert formats_for("vllm", [fmt], FORMATS) == (fmt,)
    assert parse_format(fmt).nbytes(SHAPE) == WEIGHTS * bits // 8 + WEIGHTS // group * 2


def test_vllm_ties_fused_matrices_and_keeps_tables_in_16_bits() -> None:
    formats = ("sym4-g32", "bf16")
    options = tuple(Option(fmt, 0, parse_format(fmt).nbytes((8, 128)), 1.0) for fmt in formats)
    names = ("l.q_proj", "l.k_proj", "l.v_proj", "l.o_proj")
    items = [Item(name, options, "attention", 0, (8, 128)) for name in names]
    table = Item("table", options, "embedding", None, (8, 128))
    found = restricted(Problem((table, *items), 10**6), "vllm", ())
    assert found.ties == (names[:3],)
    assert [option.format for option in found.items[0].options] == ["bf16"]
    assert len(found.items[1].options) == 2
    assert restricted(Problem((items[3],), 10**6), "vllm", ()).ties == ()
    only_packed = replace(table, options=options[:1])
    with pytest.raises(UserError, match="table has no such option; add bf16 to --formats"):
        restricted(Problem((only_packed,), 10**6), "vllm", ())
    assert ties_for("vllm", ("qkv",)) == ("qkv", "gate-up")
    with pytest.raises(UserError, match="'hand-made' cannot tie formats"):
        check_planner("hand-made", ties_for("vllm", ()))


def test_formats_for_bitsandbytes_take_half_a_byte_and_an_fp32_scale_for_64() -> None:
    for fmt in ("nf4", "fp4"):
        assert parse_format(fmt).nbytes(SHAPE) == WEIGHTS // 2 + WEIGHTS // 64 * 4
    assert parse_format("int8").nbytes(SHAPE) == WEIGHTS + SHAPE[0] * 4


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_default_formats_of_a_runtime_can_be_stored_by_it(runtime: str) -> None:
    chosen = formats_for(runtime, None, FORMATS)
    assert chosen == (RUNTIMES[runtime].formats or FORMATS)
    assert formats_for(runtime, chosen, FORMATS) == chosen


@pytest.mark.parametrize(
    ("runtime", "fmt"),
    [("gguf", "int4-g64"), ("gguf", "int8"), ("mlx", "nf4"), ("mlx", "int4-g64-dq"), ("mlx", "int7-g64"),
     ("vllm", "sym6-g64"), ("vllm", "int4-g64"), ("bnb", "int4-g64"), ("bnb", "nf3"), ("bnb", "nf4-g32")],
)  # fmt: skip
def test_a_format_that_the_runtime_cannot_store_is_an_error_with_those_that_it_can(
    runtime: str, fmt: str
) -> None:
    with pytest.raises(UserError, match=f"{runtime} cannot store {fmt} in the planned bytes") as error:
        formats_for(runtime, [fmt], FORMATS)
    assert ", ".join(RUNTIMES[runtime].formats) in str(error.value)
    with pytest.raises(UserError, match="unknown runtime 'ggml'"):
        formats_for("ggml", None, FORMATS)


def problem_of(*names: str, columns: int = 128, role: str = "attention") -> Problem:
    options = tuple(
        Option(fmt, 0, parse_format(fmt).nbytes((8, columns)), 1.0) for fmt in ("int4-g64", "int4-g32")
    )
    return Problem(tuple(Item(name, options, role, 0, (8, columns)) for name in names), 10**6)


def test_rows_that_the_runtime_would_have_to_pad_lose_the_format() -> None:
    tied = restricted(problem_of("a", columns=96), "mlx", ())
    assert [option.format for option in tied.items[0].options] == ["int4-g32"]
    assert len(restricted(problem_of("a", columns=96), "any", ()).items[0].options) == 2
    with pytest.raises(UserError, match="no offered group divides the 40 columns of a"):
        restricted(problem_of("a", columns=40), "mlx", ())


@pytest.mark.parametrize(
    ("tie", "names", "groups"),
    [
        ("qkv", ["l.0.q_proj", "l.0.k_proj", "l.0.v_proj", "l.0.o_proj", "l.1.q_proj"], 1),
        ("qkv", ["e.0.self.query", "e.0.self.key", "e.0.self.value"], 1),
        ("gate-up", ["l.0.mlp.gate_proj", "l.0.mlp.up_proj", "l.1.mlp.gate_proj", "l.1.mlp.up_proj"], 2),
        ("qkv", ["h.0.attn.c_attn", "h.0.attn.c_proj"], 0),
    ],
)
def test_matrices_of_one_parent_are_tied(tie: str, names: list[str], groups: int) -> None:
    found = tied_groups(names, tie)
    assert len(found) == groups
    for group in found:
        assert set(group) <= set(names) and len({name.rpartition(".")[0] for name in group}) == 1


def test_ties_are_part_of_the_problem_and_pins_that_disagree_are_an_error() -> None:
    names = ("l.0.q_proj", "l.0.k_proj", "l.0.v_proj")
    tied = restricted(problem_of(*names), "any", ("qkv",))
    assert tied.ties == (names,)
    with pytest.raises(PlanError, match="tied matrices share one format"):
        tied.pinned({names[0]: ("int4-g64", None), names[1]: ("int4-g32", None)})


def test_cross_attention_is_not_tied() -> None:
    crossed = problem_of("d.0.q", "d.0.k", "d.0.v", role="cross-attention")
    own = problem_of("s.0.q", "s.0.k", "s.0.v")
    both = Problem(crossed.items + own.items, 10**6)
    assert restricted(both, "any", ("qkv",)).ties == (("s.0.q", "s.0.k", "s.0.v"),)


def test_a_model_without_the_matrices_of_a_tie_and_an_unknown_tie_are_errors() -> None:
    with pytest.raises(UserError, match="no gate and up projections"):
        restricted(problem_of("e.0.intermediate.dense"), "any", ("gate-up",))
    with pytest.raises(UserError, match="unknown tie 'qk'; nearest: qkv"):
        restricted(problem_of("a"), "any", ("qk",))


def test_planners_that_choose_formats_by_role_cannot_tie() -> None:
    for planner in ("hand-made", "random"):
        with pytest.raises(UserError, match=f"the planner '{planner}' cannot tie formats; use one of exact"):
            check_planner(planner, tuple(TIES))
        check_planner(planner)
    check_planner("exact", tuple(TIES))


def test_ranks_above_the_largest_are_not_offered() -> None:
    assert limit_rank(Choices(), 8).offered_ranks == tuple(rank for rank in RANKS if rank <= 8)
    assert limit_rank(Choices(), None) == Choices()
    assert limit_rank(Choices(ranks=(4, 64)), 16).offered_ranks == (4,)
    with pytest.raises(UserError, match="no rank up to 1 is offered; offered: 4, 64"):
        limit_rank(Choices(ranks=(4, 64)), 1)
