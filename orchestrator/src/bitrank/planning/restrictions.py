"""Restrictions of a runtime on plans: formats that it can store, and matrices that it fuses.

A runtime can store a format in the planned bytes if its own layout of a matrix takes exactly the bytes of the
format: codes, scales and minima of the same sizes in the same groups. Other formats would be quantized again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bitrank_planner import Item, Problem
from bitrank_quant import Affine, Codebook, Float, Format, Int8Row, Symmetric, parse_format

from bitrank.errors import UserError, unknown
from bitrank.planning.costs import FORMATS, Choices
from bitrank.spec.inits import INITS


@dataclass(frozen=True)
class Runtime:
    """A runtime: ``formats`` are offered by default, ``can_store`` decides about any format.

    ``storable`` lists all that it can store, for exports of plans that were not made for it.
    ``whole_groups``: rows must be multiples of the group, because the runtime does not pad them.
    ``blocks_only``: matrices outside of the transformer blocks stay in 16 bits. ``fuses`` names the ties of
    matrices that the runtime stores as one, where a model has them.
    """

    about: str
    formats: tuple[str, ...]
    can_store: Callable[[Format], bool]
    storable: tuple[str, ...] = ()
    whole_groups: bool = False
    blocks_only: bool = False
    fuses: tuple[str, ...] = ()


def _in_mlx(fmt: Format) -> bool:
    """Affine with scale and bias in the dtype of the weight, bits and groups of ``mlx.core.quantize``."""
    if isinstance(fmt, Affine):
        return fmt.bits in (2, 3, 4, 5, 6, 8) and fmt.block in (32, 64, 128) and not fmt.double_quant
    return isinstance(fmt, Float)


def _in_vllm(fmt: Format) -> bool:
    """``pack-quantized`` of compressed-tensors: symmetric 4 and 8 bits in groups of 32, 64 and 128."""
    if isinstance(fmt, Symmetric):
        return fmt.bits in (4, 8) and fmt.block in (32, 64, 128)
    return isinstance(fmt, Float)


def _in_bitsandbytes(fmt: Format) -> bool:
    """NF4 and FP4 in blocks of 64, and int8 with an fp32 scale per row."""
    if isinstance(fmt, Codebook):
        return fmt.bits == 4 and fmt.block == 64
    return isinstance(fmt, Int8Row | Float)


def _in_gguf(fmt: Format) -> bool:
    """Q4_1 and Q5_1: 32 weights with a 16-bit scale and minimum; 20 and 24 bytes."""
    if isinstance(fmt, Affine):
        return fmt.bits in (4, 5) and fmt.block == 32 and not fmt.double_quant
    return isinstance(fmt, Float)


_MLX = ("int2-g64", "int3-g64", "int4-g64", "int5-g64", "int6-g64", "int8-g64", "bf16")
_IN_MLX = tuple(f"int{bits}-g{group}" for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128))
_IN_VLLM = tuple(f"sym{bits}-g{group}" for bits in (4, 8) for group in (32, 64, 128))
_VLLM = ("sym4-g32", "sym4-g64", "sym4-g128", "sym8-g64", "bf16")
RUNTIMES: dict[str, Runtime] = {
    "any": Runtime("no restriction", (), lambda fmt: True),
    "gguf": Runtime(
        "llama.cpp: int4-g32 as Q4_1, int5-g32 as Q5_1, floats",
        ("int4-g32", "int5-g32", "bf16"),
        _in_gguf,
        whole_groups=True,
    ),
    "mlx": Runtime(
        "affine integers of 2, 3, 4, 5, 6 and 8 bits in groups of 32, 64 and 128, floats",
        _MLX,
        _in_mlx,
        storable=(*_IN_MLX, "bf16"),
        whole_groups=True,
    ),
    "vllm": Runtime(
        "compressed-tensors: symmetric integers of 4 and 8 bits in groups of 32, 64 and 128 in the blocks",
        _VLLM,
        _in_vllm,
        storable=(*_IN_VLLM, "bf16"),
        whole_groups=True,
        blocks_only=True,
        fuses=("qkv", "gate-up"),
    ),
    "bnb": Runtime(
        "bitsandbytes: nf4, fp4 and their -dq forms, int8, floats",
        ("nf4", "nf4-dq", "fp4", "fp4-dq", "int8", "bf16"),
        _in_bitsandbytes,
    ),
}


@dataclass(frozen=True)
class Tie:
    """Matrices of one parent module that runtimes store as one: last names of the modules, by architecture.

    ``fused`` are last names of modules that are one matrix in the model already.
    """

    about: str
    names: tuple[tuple[str, ...], ...]
    fused: tuple[str, ...]


TIES: dict[str, Tie] = {
    "qkv": Tie(
        "query, key and value projections",
        (
            ("q_proj", "k_proj", "v_proj"),
            ("query", "key", "value"),
            ("q_lin", "k_lin", "v_lin"),
            ("q", "k", "v"),
        ),
        ("c_attn", "qkv_proj", "query_key_value", "Wqkv"),
    ),
    "gate-up": Tie(
        "gate and up projections of gated feed-forward layers",
        (("gate_proj", "up_proj"), ("wi_0", "wi_1"), ("w1", "w3")),
        ("gate_up_proj",),
    ),
}


def ties_for(runtime: str, ties: Sequence[str]) -> tuple[str, ...]:
    """The requested ``ties`` and those of ``runtime``. Raises :class:`UserError` for an unknown runtime."""
    if runtime not in RUNTIMES:
        raise unknown("runtime", runtime, RUNTIMES)
    return tuple(dict.fromkeys([*ties, *RUNTIMES[runtime].fuses]))


def check_ties(names: Sequence[str]) -> None:
    """Raise :class:`UserError` for a name that is not in :data:`TIES`."""
    for name in names:
        if name not in TIES:
            raise unknown("tie", name, TIES)


def formats_for(runtime: str, given: Sequence[str] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    """Return the formats that a plan for ``runtime`` chooses from.

    These are the ``given`` ones, else those of the runtime, else ``default``. Raises :class:`UserError` for
    an unknown runtime, and for a given format that it cannot store in the planned bytes.
    """
    if runtime not in RUNTIMES:
        raise unknown("runtime", runtime, RUNTIMES)
    entry = RUNTIMES[runtime]
    for text in given or ():
        if not entry.can_store(parse_format(text)):
            raise UserError(
                f"{runtime} cannot store {text} in the planned bytes; it can store "
                f"{', '.join(entry.formats)} ({entry.about}). Give some of these with --formats, or leave "
                "out --for"
            )
    return tuple(given or entry.formats or default)


def choices_for(
    init: str,
    formats: Sequence[str] | None = None,
    ranks: Sequence[int] | None = None,
    runtime: str = "any",
    max_rank: int | None = None,
) -> Choices:
    """Return the formats and ranks that a plan for ``runtime`` chooses from; None offers the usual ones.

    ``init`` is one of :data:`~bitrank.spec.inits.INITS`: rank repairs the quantization error if adapters
    start from it. Raises :class:`UserError` as :func:`formats_for` and :func:`limit_rank` do.
    """
    given = None if ranks is None else tuple(sorted(set(ranks)))
    offered = formats_for(runtime, formats, FORMATS)
    return limit_rank(Choices(offered, given, repairs=INITS[init].residual), max_rank)


def limit_rank(choices: Choices, max_rank: int | None) -> Choices:
    """Return ``choices`` without ranks above ``max_rank``; None changes nothing.

    Raises :class:`UserError` if no rank is left.
    """
    if max_rank is None:
        return choices
    kept = tuple(rank for rank in choices.offered_ranks if rank <= max_rank)
    if not kept:
        offered = ", ".join(map(str, choices.offered_ranks))
        raise UserError(f"no rank up to {max_rank} is offered; offered: {offered}. Raise --max-rank")
    return replace(choices, ranks=kept)


def restricted(problem: Problem, runtime: str, ties: Sequence[str]) -> Problem:
    """Return ``problem`` with the groups of ``ties`` tied, and without options that ``runtime`` would pad.

    Matrices that ``runtime`` fuses are tied too. Matrices of cross-attention are not tied: their inputs
    differ, so no runtime fuses them. Raises :class:`UserError` for an unknown tie or one that the model has
    no matrices for, and if no format is left for a matrix.
    """
    entry = RUNTIMES[runtime]
    if entry.blocks_only:
        problem = replace(problem, items=tuple(_unquantized_outside(i, runtime) for i in problem.items))
    if entry.whole_groups:
        problem = replace(problem, items=tuple(_unpadded(item, runtime) for item in problem.items))
    check_ties(ties)
    names = [item.name for item in problem.items if item.role != "cross-attention"]
    groups = [group for tie in ties for group in tied_groups(names, tie)]
    groups += [group for tie in entry.fuses for group in present_groups(names, tie)]
    return replace(problem, ties=tuple(dict.fromkeys(groups)))


def tied_groups(names: Sequence[str], tie: str) -> list[tuple[str, ...]]:
    """Return the groups of ``names`` that share a format under the tie called ``tie``.

    A model whose matrices are fused already has none. Raises :class:`UserError` if it has neither.
    """
    entry, groups = TIES[tie], present_groups(names, tie)
    if not groups and not any(name.rpartition(".")[2] in entry.fused for name in names):
        raise UserError(
            f"this model has no {entry.about} for --tie {tie}; leave it out. Its matrices are called "
            f"{', '.join(names[:3])}, …"
        )
    return groups


def present_groups(names: Sequence[str], tie: str) -> list[tuple[str, ...]]:
    """Return the groups of ``names`` under the tie called ``tie``; none if the model has no such matrices."""
    groups, present = [], set(names)
    for leaves in TIES[tie].names:
        for name in names:
            parent, _, leaf = name.rpartition(".")
            group = tuple(f"{parent}.{one}" for one in leaves)
            if leaf == leaves[0] and present.issuperset(group):
                groups.append(group)
    return groups


def _unquantized_outside(item: Item, runtime: str) -> Item:
    if item.layer is not None and item.role != "embedding":
        return item
    kept = tuple(option for option in item.options if isinstance(parse_format(option.format), Float))
    if not kept:
        raise UserError(
            f"{runtime} stores matrices outside of the transformer blocks in 16 bits, and {item.name} has no "
            "such option; add bf16 to --formats"
        )
    return replace(item, options=kept)


def _unpadded(item: Item, runtime: str) -> Item:
    columns = item.shape[1]
    kept = []
    for option in item.options:
        block = parse_format(option.format).block
        if block is None or columns % block == 0:
            kept.append(option)
    if not kept:
        raise UserError(
            f"{runtime} does not pad rows, and no offered group divides the {columns} columns of "
            f"{item.name}; offer bf16 or smaller groups with --formats"
        )
    return replace(item, options=tuple(kept))
