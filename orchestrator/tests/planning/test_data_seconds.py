"""The seconds of gathering what a start or a quantizer reads count as planning, cached or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bitrank.planning.data_seconds import data_of
from bitrank.planning.planner_studies import find_study
from bitrank.planning.study_plans import _planned
from bitrank.sensitivity.input_moments import StoredMoments, gather, moments_place
from bitrank.sensitivity.measure import measure
from bitrank.sensitivity.start_data import StartData, gather_start_data, start_data_place
from bitrank.spec.inits import GRADIENTS, INITS, INPUTS, SENSITIVITIES
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.spec.run_spec import RunSpec

SMOKE, TASK = PROFILES["smoke"], "toy_sentences"


def planned(arm: str, folder: Path, budget: str = "=B-Q4", **overrides: str) -> tuple[float, RunSpec]:
    """The measuring seconds of the plan of ``arm``, and the spec of its run."""
    path = _planned(find_study("systems", quick=True), SMOKE, arm, budget, TASK, overrides, folder)
    assert isinstance(path, Path), path
    spec = make_spec(SMOKE, "", TASK, {**overrides, "plan": str(path)})
    return json.loads(path.read_text())["planning_seconds"]["measuring"], spec


@pytest.mark.parametrize("arm", ["EVA-Q4", "GoRA-Q4", "LoRA-GA-Q4"])
def test_the_sweep_of_gradients_counts(arm: str, tmp_path: Path) -> None:
    seconds, spec = planned(arm, tmp_path)
    assert start_data_place(spec).is_dir(), "the run reads what was gathered"
    assert seconds == StartData(gather_start_data(spec)).seconds > 0


@pytest.mark.parametrize("arm", ["GPTQ-Q4", "CLoQ-Q4", "QERA-Q4", "CorDA-Q4"])
def test_the_second_moments_of_inputs_count_once(arm: str, tmp_path: Path) -> None:
    """CLoQ reads them twice, for its start and for its codes."""
    seconds, spec = planned(arm, tmp_path)
    assert moments_place(spec).is_dir(), "the run reads what was gathered"
    assert seconds == StoredMoments(gather(spec)).seconds > 0


def test_arms_that_read_no_data_cost_nothing(tmp_path: Path) -> None:
    for arm in ("B-Q4", "LoftQ-Q4", "PiSSA-Q4"):
        assert planned(arm, tmp_path)[0] == 0.0


def test_a_quantizer_of_the_command_replaces_that_of_the_arm(tmp_path: Path) -> None:
    seconds, spec = planned("B-Q4", tmp_path, quantizer="search")
    assert spec.quantizer == "search" and seconds == StoredMoments(gather(spec)).seconds
    assert planned("GPTQ-Q4", tmp_path / "rounded", quantizer="rtn")[0] == 0.0


def test_planners_count_the_measurement_and_the_moments_of_the_quantizer(tmp_path: Path) -> None:
    seconds, spec = planned("hand-made", tmp_path, "9bits")
    moments = StoredMoments(gather(spec)).seconds
    assert seconds == pytest.approx(measure(spec).seconds + moments), "it starts by LQ-LoRA"


@pytest.mark.parametrize(
    ("init", "quantizer", "expected"),
    [
        ("default", "rtn", set()),
        ("pissa", "rtn", set()),
        ("lq-lora", "rtn", {SENSITIVITIES}),
        ("lora-ga", "rtn", {GRADIENTS}),
        ("qera", "gptq", {INPUTS}),
        ("eva", "search", {GRADIENTS, INPUTS}),
    ],
)
def test_data_by_start_and_quantizer(init: str, quantizer: str, expected: set[str]) -> None:
    assert data_of(init, quantizer) == expected


def test_starts_that_are_named_after_data_are_known() -> None:
    assert {init.reads for init in INITS.values()} == {None, SENSITIVITIES, INPUTS, GRADIENTS}
