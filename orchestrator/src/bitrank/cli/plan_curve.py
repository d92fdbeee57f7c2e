"""``bitrank plan --budgets``: a plan for each budget, and the curve of predicted loss against bytes."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bitrank.cli.plan_request import config_spec, measured_spec, plan_request, print_progress
from bitrank.cli.plan_save import make_plans_folder
from bitrank.errors import UserError
from bitrank.export.registry import check_runtime
from bitrank.spec.run_spec import RunSpec

if TYPE_CHECKING:  # imports torch
    from bitrank.planning.curve import Curve, CurvePoint


def show_curve(arguments: argparse.Namespace, outline: bool) -> int:
    """Plan for every budget, show and save the curve.

    ``outline``: from a ``config.json`` alone. Raises :class:`UserError` at the end if a budget has no plan;
    everything else is shown and saved before.
    """
    from bitrank.planning.curve import curve_data, measured_curve, outlined_curve
    from bitrank.terminal import console

    if arguments.matrices:
        raise UserError(
            "--matrices lists the matrices of one plan: give --budget, or leave --matrices out (the files of "
            "--save have every matrix)"
        )
    budgets = list(dict.fromkeys(arguments.budgets))
    if arguments.save is not None:
        make_plans_folder(arguments.save, map(_plan_file, budgets))
    request = plan_request(arguments, budgets[0])
    spec = config_spec(arguments) if outline else measured_spec(arguments)
    check_runtime(request.runtime, spec, outline)
    if outline:
        curve = outlined_curve(spec, request, budgets)
    else:
        curve = measured_curve(spec, request, budgets, print_progress)
    files = _plan_files(curve) if arguments.save is not None else {}
    data = {
        "planner": request.planner,
        "model": spec.model,
        "task": spec.task,
        "sensitivities": "prior" if outline else "measured",
        "base_loss": curve.base_loss,
        "points": curve_data(curve, files),
    }
    if arguments.save is not None:
        _save(arguments, spec, curve, data, files)
    if arguments.json:
        print(json.dumps(data, indent=1))
    else:
        console().print(_table(curve), markup=False)
        if arguments.save is not None:
            console().print(f"\nsaved: {arguments.save}", soft_wrap=True, markup=False)
    if missing := curve.missing:
        reasons = "; ".join(f"{point.budget}: {point.error}" for point in missing)
        raise UserError(f"{len(missing)} of {len(curve.points)} budgets have no plan: {reasons}")
    return 0


def _plan_files(curve: Curve) -> dict[str, str]:
    """Budget → file name of its plan, for budgets with a plan."""
    return {point.budget: _plan_file(point.budget) for point in curve.points if point.plan is not None}


def _plan_file(budget: str) -> str:
    return f"plan-{re.sub(r'[^A-Za-z0-9.]+', '-', budget).strip('-')}.json"


def _save(
    arguments: argparse.Namespace, spec: RunSpec, curve: Curve, data: dict[str, Any], files: dict[str, str]
) -> None:
    """Write the plans, ``curve.json``, the figure and the page into the folder ``--save``."""
    from bitrank_analysis.figures import budget_curve, save

    from bitrank.cli.plan_page import save_curve_page
    from bitrank.spec.plan_file import plan_data, save_plan

    folder: Path = arguments.save
    for point in curve.points:
        if point.plan is not None:
            content = plan_data(
                point.plan, curve.sizes.matrices, point.nbytes, arguments.init, spec.quantizer
            )
            save_plan(content, folder / files[point.budget])
    save_plan(data, folder / "curve.json")
    drawn = [row for row in data["points"] if "bytes" in row]
    if drawn:
        save_curve_page(folder / "curve.html", spec.model, curve, drawn)
        save(
            budget_curve(drawn, f"{Path(spec.model).name}, planner {data['planner']}"), folder, ("svg", "png")
        )


def _table(curve: Curve) -> Table:
    table = Table(title="predicted loss by budget", title_justify="left", box=None, pad_edge=False)
    for head in ("budget", "limit, bytes", "bytes", "bits", "added loss", "mean rank"):
        table.add_column(head, justify="left" if head == "budget" else "right", no_wrap=True)
    table.add_column("formats; note")
    for point in curve.points:
        table.add_row(point.budget, f"{point.nbytes:,}", *_cells(point, curve))
    return table


def _cells(point: CurvePoint, curve: Curve) -> list[str]:
    plan = point.plan
    if plan is None:
        return ["", "", "", "", f"no plan: {point.error}"]
    formats = ", ".join(f"{count} × {fmt}" for fmt, count in Counter(plan.precision.values()).most_common())
    adapted = sum(matrix.adaptable for matrix in curve.sizes.matrices.values())
    return [
        f"{plan.nbytes:,}",
        f"{8 * plan.nbytes / curve.sizes.parameters:.2f}",
        f"{plan.cost:.4f}",
        f"{sum(plan.ranks.values()) / max(adapted, 1):.1f}",
        f"{formats}; {point.note}" if point.note else formats,
    ]
