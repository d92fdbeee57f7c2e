"""Learning-rate schedule and validation of settings."""

from __future__ import annotations

import math

import pytest
from bitrank_trainer import TrainError, TrainSettings
from hypothesis import given
from hypothesis import strategies as st


def test_rate_warms_up_linearly_and_decays_as_cosine_to_zero() -> None:
    settings = TrainSettings(steps=100, learning_rate=1.0, warmup=0.1)
    assert [settings.rate(step) for step in (1, 5, 10, 11)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert settings.rate(56) == pytest.approx(0.5)
    assert 0 < settings.rate(100) < 0.001


@given(st.integers(1, 500), st.floats(0, 0.9))
def test_rate_is_positive_and_at_most_the_peak(steps: int, warmup: float) -> None:
    settings = TrainSettings(steps=steps, learning_rate=1.0, warmup=warmup)
    rates = [settings.rate(step) for step in range(1, steps + 1)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", -3),
        ("learning_rate", 0.0),
        ("warmup", 1.0),
        ("clip", 0.0),
        ("accumulation", 0),
        *((name, math.nan) for name in ("learning_rate", "warmup", "clip", "weight_decay")),
        *((name, math.inf) for name in ("learning_rate", "warmup", "weight_decay")),
    ],
)
def test_invalid_settings_raise_train_error(field: str, value: float) -> None:
    with pytest.raises(TrainError, match=field):
        TrainSettings(**{"steps": 10, field: value})
