"""Optuna, loaded when a search needs it, and quiet while that search runs."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bitrank_planner.errors import PlanError


@contextmanager
def quiet_optuna(solver: str, *modules: str) -> Iterator[Any]:
    """The module ``optuna``, its log held at errors and its warnings off until the block ends.

    Raises :class:`PlanError` when it, or one of ``modules`` that the sampler needs besides, is not installed.
    """
    try:
        optuna = importlib.import_module("optuna")
        for module in modules:
            importlib.import_module(module)
    except ImportError as error:
        raise PlanError(
            f"{solver} needs {error.name}, which is not installed: pip install 'bitrank-planner[search]'"
        ) from error
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            # It warns of experimental arguments and of infinite values; both are meant.
            warnings.filterwarnings("ignore", module="optuna")
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            yield optuna
    finally:
        optuna.logging.set_verbosity(before)
