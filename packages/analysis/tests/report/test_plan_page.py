"""The page of a plan shows maps, bytes and the curve, runs no script, and escapes every name."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from bitrank_analysis import AnalysisError
from bitrank_analysis.figures import part_bytes, spec
from bitrank_analysis.report import PlanSection, plan_page

HOSTILE = "<script>alert(1)</script>&"
MATRICES = [f"layers.{layer}.{part}" for layer in range(2) for part in ("q", HOSTILE)]
POINTS = [{"budget": HOSTILE, "bytes": 2**20, "predicted_added_loss": 0.25}]


def section() -> PlanSection:
    formats = {name: "nf4" if index % 2 else "int8" for index, name in enumerate(MATRICES)}
    formats[f"head{HOSTILE}"] = "bf16"
    weights = dict.fromkeys(formats, 2**20)
    ranks, adapters = dict.fromkeys(MATRICES, 4), dict.fromkeys(MATRICES, 2**18)
    return PlanSection(HOSTILE, formats, ranks, weights, adapters, 2**16, {HOSTILE: HOSTILE})


@pytest.fixture(scope="module")
def page() -> str:
    return plan_page(f"Plan for {HOSTILE}", [section()], POINTS, HOSTILE)


def test_names_are_escaped_and_the_page_loads_nothing(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    addresses = set(re.findall(r'(?:src|href|url)[=(]"?([^")> ]+)', page))
    assert addresses <= {"data:,"}


def test_each_plan_has_maps_of_bits_and_rank_and_its_bytes(page: str) -> None:
    assert page.count("<svg") == 4  # with the curve
    for text in ("Bits of one stored weight", "LoRA rank", "of all bytes; adapters take"):
        assert text in page
    assert "1,048,576" in page  # of the head, which is in no map


def test_ids_of_drawings_do_not_collide(page: str) -> None:
    counts = Counter(re.findall(r'\sid="([^"]+)"', page))
    assert all(count == 1 for count in counts.values())


def test_without_points_there_is_no_curve() -> None:
    assert plan_page("Plan", [section()]).count("<svg") == 3


def test_bytes_by_part_add_up_to_the_plan() -> None:
    plan = section()
    figure = part_bytes(plan.weights, plan.adapters, plan.fixed)
    (rows,) = spec(figure)["datasets"].values()
    total = sum(plan.weights.values()) + sum(plan.adapters.values()) + plan.fixed
    assert sum(row["bytes"] for row in rows) == total
    with pytest.raises(AnalysisError, match="at least one matrix"):
        part_bytes({}, {}, 0)
