"""Formats that a quantizer cannot choose codes of are refused before a model is measured."""

from __future__ import annotations

from typing import Any

import pytest
from bitrank.planning import curve, make_plan
from bitrank.planning.costs import Choices
from bitrank.planning.make_plan import PlanRequest
from bitrank.sensitivity.measure import FORMATS, measured_formats
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank_quant import QUANTIZERS, Format, QuantError, check_quantizable, parse_format
from bitrank_quant.formats import parse


class Ternary(Format):
    """A format without a grid: two bits a weight."""

    backend = "reference"
    block = None
    bits = 2

    def __str__(self) -> str:
        return "ternary2"

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is used: the format is measured")


Ternary.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
CHOICES = Choices(("ternary2", "int8", "bf16"))


@pytest.fixture
def ternary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parse.FORMATS, "ternary2", Ternary())


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("text", FORMATS)
def test_every_quantizer_can_choose_codes_of_every_format_that_is_measured(text: str, quantizer: str) -> None:
    assert check_quantizable(parse_format(text), quantizer) is None  # it raises what is wrong


@pytest.mark.parametrize("quantizer", ["search", "gptq"])
def test_format_without_grid_is_refused_before_anything_is_measured(
    ternary: None, monkeypatch: pytest.MonkeyPatch, quantizer: str
) -> None:
    for module in (make_plan, curve):
        monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("the model is measured"))
    spec = make_spec(find_profile("smoke"), "B-FP", "toy_sentences", {"quantizer": quantizer})
    request = PlanRequest("9bits", choices=CHOICES)
    message = "ternary2 has no grid of codes to choose from; give the quantizer rtn"
    with pytest.raises(QuantError, match=message):
        make_plan.make_plan(spec, request)
    with pytest.raises(QuantError, match=message):
        curve.measured_curve(spec, request, ["9bits", "10bits"])


def test_rounding_needs_no_grid(ternary: None) -> None:
    assert measured_formats(CHOICES.formats, "rtn") == (*FORMATS, "ternary2")
