"""Lazy import of Optuna with its log output suppressed during a search."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bitrank_planner.errors import PlanError


@contextmanager
def quiet_optuna(solver: str, *modules: str) -> Iterator[Any]:
    """Yield the module ``optuna`` with its log level at ERROR and its warnings off inside the block.

    Raises :class:`PlanError` if Optuna, or one of ``modules`` that the sampler needs, is not installed.
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
            # Optuna warns about experimental arguments and infinite values; both are intended here.
            warnings.filterwarnings("ignore", module="optuna")
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            yield optuna
    finally:
        optuna.logging.set_verbosity(before)
