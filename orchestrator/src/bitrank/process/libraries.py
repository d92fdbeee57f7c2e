"""Versions of installed distributions."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

OURS = ("bitrank", "bitrank-data", "bitrank-planner", "bitrank-quant", "bitrank-adapters", "bitrank-trainer")
# The libraries that decide the numbers of a run.
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "optimum-quanto", "datasets")
NOT_INSTALLED = "not installed"


def installed_version(name: str) -> str:
    """The version of the distribution ``name``, or ``not installed``."""
    try:
        return version(name)
    except PackageNotFoundError:
        return NOT_INSTALLED
