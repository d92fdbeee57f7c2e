"""What both tiny models lose in every format, measured once a module."""

from __future__ import annotations

import pytest
from bitrank.measuring import Tables, measure
from bitrank.profiles import find_profile
from bitrank.specs import RunSpec, make_spec


@pytest.fixture(scope="module", params=["toy_sentences", "toy_articles"])
def spec(request: pytest.FixtureRequest) -> RunSpec:
    return make_spec(find_profile("smoke"), "B-FP", request.param)


@pytest.fixture(scope="module")
def tables(spec: RunSpec) -> Tables:
    return measure(spec)
