"""Measured tables of both tiny models, once per test module."""

from __future__ import annotations

import pytest
from bitrank.sensitivity.measure import measure
from bitrank.sensitivity.tables import Tables
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec


@pytest.fixture(scope="module", params=["toy_sentences", "toy_articles"])
def spec(request: pytest.FixtureRequest) -> RunSpec:
    return make_spec(find_profile("smoke"), "B-FP", request.param)


@pytest.fixture(scope="module")
def tables(spec: RunSpec) -> Tables:
    return measure(spec)
