"""The output of ``bitrank plan`` for one budget: files, terminal, and the command that trains the plan."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitrank.cli.options import TASK_OPTIONS

if TYPE_CHECKING:  # imports torch
    from bitrank_planner import Item, Plan

    from bitrank.planning.budget import Sizes

_TO_FILL_IN = "TASK: a task's name or your own file; FOLDER: the model's folder with its weights"


@dataclass(frozen=True)
class Planned:
    """A plan with its matrices, sizes and the location of its model."""

    plan: Plan
    items: Sequence[Item]
    sizes: Sizes
    model: str


def show_plan(
    arguments: argparse.Namespace, planned: Planned, shown: dict[str, str], data: dict[str, Any]
) -> int:
    """Save the plan with its page, and print it."""
    from bitrank.cli.plan_page import page_path, save_plan_page
    from bitrank.cli.plan_view import plan_lines, plan_view
    from bitrank.spec.plan_file import save_plan
    from bitrank.terminal import console

    plan, items = planned.plan, planned.items
    if arguments.save is not None:
        save_plan(data, arguments.save)
        save_plan_page(page_path(arguments.save), planned.model, plan, planned.sizes, shown)
    if arguments.json:
        print(json.dumps(data, indent=1))
        return 0
    screen = console()
    if arguments.matrices:
        screen.print(plan_lines(plan, items), markup=False)
    screen.print(plan_view(plan, items, shown), markup=False)
    if arguments.save is not None:
        screen.print(
            f"\nsaved: {arguments.save}   page: {page_path(arguments.save)}   "
            f"train: {_run_command(arguments)}",
            soft_wrap=True,
            markup=False,
        )
    return 0


def _run_command(arguments: argparse.Namespace) -> str:
    """The command that trains with the saved plan on the same task, model and settings.

    A plan from a ``config.json`` has neither a task nor weights, so words in capitals stand for both.
    """
    outline = arguments.task is None
    parts = ["bitrank", "run", *_option("plan", arguments.save), *_option("task", arguments.task or "TASK")]
    if arguments.model is not None:
        parts += _option("model", "FOLDER" if outline else arguments.model)
    if arguments.profile != "laptop":
        parts += _option("profile", arguments.profile)
    for field in ("seed", *TASK_OPTIONS):
        if (value := getattr(arguments, field)) is not None:
            parts += _option(field, value)
    for setting in arguments.set:
        parts += ["--set", setting]
    ending = f" ({_TO_FILL_IN})" if outline else ""
    return shlex.join(parts) + ending


def _option(field: str, value: object) -> list[str]:
    """An option with its value, as one word where the value would be read as an option."""
    name, text = f"--{field.replace('_', '-')}", str(value)
    return [f"{name}={text}"] if text.startswith("-") else [name, text]
