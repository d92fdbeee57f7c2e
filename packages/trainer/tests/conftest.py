"""Fixtures for the models of :mod:`tiny_problem`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_problem import TinyClassifier, TinyLm
from torch import nn


@pytest.fixture(scope="session")
def make() -> Callable[[str], nn.Module]:
    def build(kind: str = "classification") -> nn.Module:
        torch.manual_seed(0)
        return TinyClassifier() if kind == "classification" else TinyLm()

    return build
