"""Measurements in another process: from any script, with the errors of the function."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from bitrank.errors import UserError
from bitrank.run.measure_in_subprocess import call_in_subprocess
from bitrank.spec.inputs import check_inputs
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile

SCRIPT = """
import bitrank

plan = bitrank.plan("tiny-bert", "toy_sentences", "120kB", profile="smoke", quantizer="search")
print("bytes", plan["bytes"])
"""


def test_a_script_without_a_guard_for_main_plans_by_a_quantizer_that_needs_inputs(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITRANK_CACHE", str(place / "cache"))
    (place / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("bytes")]
    assert 0 < int(line.split()[1]) <= 120_000


def test_errors_of_the_function_are_those_of_the_caller() -> None:
    spec = make_spec(find_profile("smoke"), "B-FP", "toy_sentences")
    assert call_in_subprocess(check_inputs, spec) is None
    with pytest.raises(UserError, match="changed") as found:
        call_in_subprocess(check_inputs, replace(spec, data_digest="0" * 64))
    assert "in check_inputs" in found.value.__notes__[0]


def test_a_process_that_ends_without_a_result_is_an_error(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(find_profile("smoke"), "B-FP", "toy_sentences")
    (place / "ends_at_once.py").write_text("import os\n\ndef end(spec):\n    os._exit(1)\n")
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(place), os.environ.get("PYTHONPATH", ""))))
    with pytest.raises(RuntimeError, match="ended with code 1 and without a result"):
        call_in_subprocess(import_module("ends_at_once").end, spec)
