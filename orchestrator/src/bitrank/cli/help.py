"""Help texts that list names from registries, read when help is shown.

Some registries live beside code that loads torch, which takes seconds; a command line that shows no help does
not wait for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable


class Parser(argparse.ArgumentParser):
    """A parser that completes the help of its options before it is shown."""

    def format_help(self) -> str:
        complete(self)
        return super().format_help()


def list_names(action: argparse.Action, names: Callable[[], Iterable[str]]) -> None:
    """Let the help of ``action`` end with ``names``, which are asked for when it is shown."""
    action.names = names  # type: ignore[attr-defined]


def complete(parser: argparse.ArgumentParser) -> None:
    """Put the names into the help of every option of ``parser``."""
    for action in parser._actions:
        names = getattr(action, "names", None)
        if names is not None:
            action.help = f"{action.help}: {', '.join(names())}"
            action.names = None  # type: ignore[attr-defined]


def overrides() -> list[str]:
    """Values of ``--quant-backend``, each with what it means."""
    from bitrank_quant import OVERRIDES

    return [f"{name} ({override.about})" for name, override in OVERRIDES.items()]


def planners() -> list[str]:
    """Values of ``--planner``."""
    from bitrank.planning.planners import planner_names

    return planner_names()


def studies() -> list[str]:
    """Names of studies, each with its question."""
    from bitrank.planning.planner_studies import STUDIES

    return [f"{name} ({study.about})" for name, study in STUDIES.items()]


def formats() -> list[str]:
    """Names of number formats, and the grammar of those without a name."""
    from bitrank_quant import FAMILIES, FORMATS

    return [*FORMATS, *FAMILIES]


def tasks() -> list[str]:
    """Names of tasks."""
    from bitrank_data import TASKS

    return list(TASKS)
