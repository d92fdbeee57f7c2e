"""The HTML page beside a saved plan, or beside the plans of several budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitrank_data import write_atomically

from bitrank.errors import UserError
from bitrank.spec.plan_file import plan_stem

if TYPE_CHECKING:  # imports torch and pandas
    from bitrank_analysis.report import PlanSection
    from bitrank_planner import Plan

    from bitrank.planning.budget import Sizes
    from bitrank.planning.curve import Curve

_SUFFIX = ".html"
_MARK = '<p class="kicker">bitrank plan</p>'  # of the template


def page_path(plan: Path) -> Path:
    """The page beside the file ``plan``; never ``plan`` itself."""
    return plan.with_name(plan_stem(plan) + _SUFFIX)


def is_plan_page(path: Path) -> bool:
    """Whether the file at ``path`` is a page that :func:`save_plan_page` wrote."""
    return _MARK in path.read_text(encoding="utf-8", errors="replace")


def save_plan_page(path: Path, model: str, plan: Plan, sizes: Sizes, facts: Mapping[str, str]) -> None:
    """Write the page of one ``plan`` for ``model``; ``facts`` are its predicted figures by label."""
    _write(path, f"Plan for {_name(model)}", [_section(path.name.removesuffix(_SUFFIX), plan, sizes, facts)])


def save_curve_page(path: Path, model: str, curve: Curve, points: Sequence[Mapping[str, Any]]) -> None:
    """Write the page of all plans of ``curve``, with the loss of ``points`` against their bytes."""
    sections = []
    for point in curve.points:
        if (plan := point.plan) is not None:
            facts = {
                "model and adapters": f"{plan.nbytes:,} of {point.nbytes:,} bytes",
                "predicted added loss": f"{plan.cost:.4f} nats",
                **({"note": point.note} if point.note else {}),
            }
            sections.append(_section(point.budget, plan, curve.sizes, facts))
    _write(path, f"Plans for {_name(model)}", sections, points, f"{_name(model)}, {len(points)} budgets")


def _section(name: str, plan: Plan, sizes: Sizes, facts: Mapping[str, str]) -> PlanSection:
    from bitrank_analysis.report import PlanSection

    ranks = {
        matrix: plan.ranks.get(matrix, 0) for matrix in plan.precision if sizes.matrices[matrix].adaptable
    }
    weights = {matrix: sizes.of_matrix(matrix, fmt, 0) for matrix, fmt in plan.precision.items()}
    adapters = {
        matrix: sizes.of_matrix(matrix, plan.precision[matrix], rank) - weights[matrix]
        for matrix, rank in ranks.items()
    }
    fixed = plan.nbytes - sum(weights.values()) - sum(adapters.values())
    return PlanSection(name, plan.precision, ranks, weights, adapters, fixed, facts)


def _write(
    path: Path,
    title: str,
    sections: Sequence[PlanSection],
    points: Sequence[Mapping[str, Any]] = (),
    label: str = "",
) -> None:
    from bitrank_analysis.report import plan_page

    try:
        write_atomically(path, plan_page(title, sections, points, label))
    except OSError as error:
        raise UserError(
            f"cannot write the page of the plan to {path}: {error.strerror}; give another path with --save"
        ) from error


def _name(model: str) -> str:
    """The name of a model for people: of a ``config.json``, its folder."""
    path = Path(model)
    return path.parent.name if path.suffix == ".json" else path.name
