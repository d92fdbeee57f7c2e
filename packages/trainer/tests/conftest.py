"""Fixtures for the models of :mod:`tiny_problem`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import settings
from tiny_problem import TinyClassifier, TinyLm
from torch import nn


@pytest.fixture(scope="session")
def make() -> Callable[[str], nn.Module]:
    def build(kind: str = "classification") -> nn.Module:
        torch.manual_seed(0)
        return TinyClassifier() if kind == "classification" else TinyLm()

    return build


# A busy machine exceeds any deadline of an example; no test depends on the time it takes.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
