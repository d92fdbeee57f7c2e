"""Help texts that list the names of registries; the registries are read only when help is shown.

The modules of some registries import torch, which takes seconds. Commands that show no help skip this import.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """A parser that completes the help of its options before it is shown.

    A wrong argument ends with one sentence. argparse would print all options first, for which it reads every
    help text, and with them the registries.
    """

    def format_help(self) -> str:
        complete(self)
        return super().format_help()

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Like ``parse_args``; the error for an unknown option names the command whose help lists options."""
        arguments, unknown = self.parse_known_args(argv)
        if unknown:
            commands = next(action.choices for action in self._actions if action.dest == "command")
            command = dict(commands or {}).get(arguments.command, self)
            command.error(f"unrecognized arguments: {' '.join(unknown)}")
        return arguments

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (options: {self.prog} --help)\n")


def list_names(action: argparse.Action, names: Callable[[], Iterable[str]]) -> None:
    """Append ``names()`` to the help of ``action`` when the help is shown."""
    action.names = names  # type: ignore[attr-defined]


def complete(parser: argparse.ArgumentParser) -> None:
    """Append the registered names to the help of every option of ``parser``."""
    for action in parser._actions:
        names = getattr(action, "names", None)
        if names is not None:
            action.help = f"{action.help}: {', '.join(names())}"
            action.names = None  # type: ignore[attr-defined]


def overrides() -> list[str]:
    """Values of ``--quant-backend``, each with its meaning."""
    from bitrank_quant import OVERRIDES

    return [f"{name} ({override.about})" for name, override in OVERRIDES.items()]


def quantizers() -> list[str]:
    """Values of ``--quantizer``, each with its meaning."""
    from bitrank_quant import QUANTIZERS

    return [f"{name} ({quantizer.about})" for name, quantizer in QUANTIZERS.items()]


def planners() -> list[str]:
    """Values of ``--planner``."""
    from bitrank.planning.planners import planner_names

    return planner_names()


def study_arms() -> list[str]:
    """Arms of studies: planners, configs, and arms of their own with their meaning."""
    from bitrank.planning.study_arms import NULL_ARMS, STUDY_ARMS

    own = [f"{name} ({arm.about})" for name, arm in STUDY_ARMS.items() if name not in NULL_ARMS]
    first, *_, last = NULL_ARMS
    names = [name for name in planners() if name not in STUDY_ARMS]
    return [*names, *own, f"{first} … {last}", "and every config"]


def exact_planners() -> list[str]:
    """Planners that ``--time-limit`` limits."""
    from bitrank.planning.planners import PLANNERS

    return [name for name, planner in PLANNERS.items() if planner.effort]


def runtimes() -> list[str]:
    """Values of ``--for``, each with the formats that it can store."""
    from bitrank.planning.restrictions import RUNTIMES

    return [f"{name} ({runtime.about})" for name, runtime in RUNTIMES.items()]


def ties() -> list[str]:
    """Values of ``--tie``, each with its matrices."""
    from bitrank.planning.restrictions import TIES

    return [f"{name} ({tie.about})" for name, tie in TIES.items()]


def studies() -> list[str]:
    """Names of studies, each with its question."""
    from bitrank.planning.planner_studies import STUDIES

    return [f"{name} ({study.about})" for name, study in STUDIES.items()]


def formats() -> list[str]:
    """Names of number formats, and the grammar of the parametric ones."""
    from bitrank_quant import FAMILIES, FORMATS

    return [*FORMATS, *FAMILIES]


def tasks() -> list[str]:
    """Names of tasks."""
    from bitrank_data import TASKS

    return list(TASKS)
