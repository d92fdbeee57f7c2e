"""The prepared GPU session: the time limit keeps what was measured, failures are named, and the report."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def gpu() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        import gpu

        yield gpu
    sys.modules.pop("gpu", None)


def steps(seconds: float, count: int = 4) -> list[dict[str, float]]:
    return [{"seconds": seconds, "tokens": 30, "device_mib": 900.0, "peak_mib": 1500.0}] * count


PLANNING = {"bytes": 90, "budget": 100, "planning_seconds": {"measuring": 2.0, "choosing": 1.0}}
SIDE = """
import json, sys
if sys.argv[1] == "fails":
    sys.exit("no memory left")
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    print(json.dumps({"seconds": 1.0, "tokens": 30, "device_mib": 0, "peak_mib": 0}), flush=True)
"""


def sides_of(gpu: Any, monkeypatch: Any, folder: Path, kinds: list[str], limit: float) -> Any:
    """The result of six sides, of which each works or fails at once."""
    (folder / "side.py").write_text(SIDE)
    left = iter(kinds)

    def script(*_: object) -> list[str]:
        return [str(folder / "side.py"), next(left)]

    monkeypatch.setattr(gpu, "script", script)
    # The command of the plan comes first, and is left out without a plan.
    arguments = SimpleNamespace(out=folder, steps=gpu.WARM_UP + 3, batch=2)
    return gpu.train_sides("m", None, arguments, time.monotonic() + limit)


def test_a_side_that_fails_is_named_and_the_others_take_turns(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kinds = ["no plan", "works", "fails", "works", "works", "works", "works"]
    found = sides_of(gpu, monkeypatch, tmp_path, kinds, 60)
    assert list(found["failed"]) == ["B-Q4 without graphs"]
    assert "plan" not in found["steps"] and len(found["steps"]) == 5
    assert all(len(made) == 3 for made in found["steps"].values())


def test_steps_before_the_time_limit_are_kept(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    step, whole = gpu.Sides.step, gpu.WARM_UP + 2

    def slow(self: Any, number: int) -> Any:
        if number == whole:
            time.sleep(60)
        return step(self, number)

    monkeypatch.setattr(gpu.Sides, "step", slow)
    found = sides_of(gpu, monkeypatch, tmp_path, ["works"] * 7, 15)
    assert found["failed"] == {"steps": "no time left"}
    assert [len(made) for made in found["steps"].values()] == [2] * 6


def test_last_json_object_of_an_output_is_read(gpu: Any) -> None:
    shown = json.dumps({"bytes": 3})
    assert gpu._last_object(f"progress\n{{'loss': 1.0}}\n{shown}\n") == {"bytes": 3}
    assert gpu._last_object(json.dumps({"bytes": {"a": 1}}, indent=1)) == {"bytes": {"a": 1}}
    assert gpu._last_object("nothing") is None


def test_report_compares_the_plan_with_the_tuned_peer_of_b_q4(gpu: Any) -> None:
    sides = {"plan": steps(0.5), "B-Q4 tuned peer": steps(1.5), "B-FP": steps(1.0)}
    found = {
        "SmolLM2": {"planning": PLANNING, "sides": {"steps": sides, "failed": {"B-Q4": "no memory"}}},
        "random Llama": {
            "planning": {"failed": "no time left"},
            "sides": {"steps": {}, "failed": {"steps": "no time left"}},
        },
    }
    report = gpu.report_of(found)
    assert "Plan of 90 bytes in a budget of 100: 2.0 s to measure, 1.0 s to choose." in report
    assert "| plan | 60 | 500.0 | 900 | 1,500 | 3.00 (3.00–3.00) |" in report
    assert "| B-FP | 30 | 1,000.0 | 900 | 1,500 | – |" in report  # without its tuned peer
    assert "No plan: no time left." in report
    assert gpu.missing(found) == [
        "SmolLM2, B-Q4: no memory",
        "random Llama, planning: no time left",
        "random Llama, steps: no time left",
    ]
