"""Assignments of formats to the block matrices at equal bytes: ours, uniform, and a rule made by hand.

An assignment maps the name of each block matrix to a format. Budgets are average bits per weight of the block
matrices with their scales; embedding and head stay in 16 bits and are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from bitrank.planning.costs import by_fisher
from bitrank.planning.interactions import calibrate_costs
from bitrank.planning.prior import SENSITIVE
from bitrank.sensitivity.tables import Tables
from bitrank.spec.run_spec import RunSpec
from bitrank_planner import Item, Option, Problem, exact
from bitrank_quant import WeightMatrix, parse_format

UNQUANTIZED = "bf16"
LADDER = ("int2-g64", "int3-g64", "int4-g64", "int5-g64", "int6-g64", "int8")
FORMATS = (*LADDER, UNQUANTIZED)
BUDGETS = (3.5, 4.0, 4.5)
UNIFORM = {3.5: "int3-g64", 4.0: "int3-g32", 4.5: "int4-g64"}
Assignment = dict[str, str]


def blocks_of(tables: Tables) -> list[WeightMatrix]:
    """The matrices that are assigned a format."""
    return [m for m in tables.matrices if m.adaptable]


def budget_bytes(blocks: Sequence[WeightMatrix], bits: float) -> int:
    """Bytes of ``blocks`` at ``bits`` per weight."""
    return int(bits * sum(m.shape[0] * m.shape[1] for m in blocks) / 8)


def stored_bytes(blocks: Sequence[WeightMatrix], assignment: Mapping[str, str]) -> int:
    """Bytes of ``blocks`` in the formats of ``assignment``."""
    return sum(parse_format(assignment[m.name]).nbytes(m.shape) for m in blocks)


def average_bits(blocks: Sequence[WeightMatrix], assignment: Mapping[str, str]) -> float:
    """Bits per weight of ``blocks`` in the formats of ``assignment``."""
    return 8 * stored_bytes(blocks, assignment) / sum(m.shape[0] * m.shape[1] for m in blocks)


def format_of(bits: int) -> str:
    """The format in which a rival's choice of ``bits`` per weight is stored. Raises ``ValueError`` if none
    has so many."""
    for text in FORMATS:
        if parse_format(text).bits == bits:
            return text
    raise ValueError(f"a rival chose {bits} bits; expected one of {', '.join(FORMATS)}")


def hand_made(blocks: Sequence[WeightMatrix], budget: int) -> Assignment:
    """The rule of practitioners' mixed formats, at ``budget`` bytes.

    Every matrix gets the largest format that fits. What is left raises matrices to the next larger one:
    values, attention outputs and down projections first, then the others, from the outermost blocks inwards.
    Raises ``ValueError`` if no format fits.
    """
    rules = [
        (low, high) for low, high in pairwise(LADDER) if stored_bytes(blocks, _all(blocks, low)) <= budget
    ]
    if not rules:
        raise ValueError(f"no format fits {budget:,} bytes; give a larger budget")
    low, high = rules[-1]
    chosen, last = _all(blocks, low), max(m.layer or 0 for m in blocks)

    def turn(matrix: WeightMatrix) -> tuple[bool, int]:
        layer = matrix.layer or 0
        return SENSITIVE.search(matrix.name) is None, min(layer, last - layer)

    for matrix in sorted(blocks, key=turn):
        raised = chosen | {matrix.name: high}
        if stored_bytes(blocks, raised) <= budget:
            chosen = raised
    return chosen


def _all(blocks: Sequence[WeightMatrix], text: str) -> Assignment:
    return {matrix.name: text for matrix in blocks}


def problem_of(tables: Tables, budget: int) -> Problem:
    """The problem of choosing a format for every block matrix; all other matrices have 16 bits."""
    items, fixed = [], 0
    for m in (m for m in tables.matrices if m.tied_to is None):
        formats = FORMATS if m.adaptable else (UNQUANTIZED,)
        sizes = {text: parse_format(text).nbytes(m.shape) for text in formats}
        fixed += 0 if m.adaptable else sizes[UNQUANTIZED]
        errors = tables.errors[m.name]
        options = tuple(Option(text, 0, sizes[text], errors[text].output) for text in formats)
        items.append(Item(m.name, options, m.role, m.layer, m.shape))
    return Problem(tuple(items), budget + fixed)


def from_scores(_spec: RunSpec, tables: Tables, budget: int) -> Assignment:
    """The exact plan of the output-error scores as they are."""
    return _of_blocks(tables, exact(problem_of(tables, budget)).precision)


def from_fisher(_spec: RunSpec, tables: Tables, budget: int) -> Assignment:
    """The exact plan of the Fisher estimates as they are."""
    return _of_blocks(tables, exact(problem_of(by_fisher(tables), budget)).precision)


def from_default_costs(spec: RunSpec, tables: Tables, budget: int) -> Assignment:
    """The exact plan of the costs that `bitrank plan` uses: both estimates, factors of kinds, and a choice on
    held-out calibration windows."""
    problems = (problem_of(tables, budget), problem_of(by_fisher(tables), budget))
    calibrated, _ = calibrate_costs(problems, tables, spec, repairs=False)
    return _of_blocks(tables, exact(calibrated).precision)


def _of_blocks(tables: Tables, precision: Mapping[str, str]) -> Assignment:
    return {m.name: precision[m.name] for m in blocks_of(tables)}


OURS: dict[str, Callable[[RunSpec, Tables, int], Assignment]] = {
    "bitrank": from_default_costs,
    "bitrank, scores": from_scores,
    "bitrank, Fisher": from_fisher,
}
