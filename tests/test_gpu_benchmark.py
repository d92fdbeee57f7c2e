"""The prepared GPU session: steps end at the time limit, failures are named, and the report has each side."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
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


def figures(speed: float) -> dict[str, float]:
    return {"wall_tok_s": speed, "device_mib": 900.0, "peak_mib": 1500.0}


def test_a_step_keeps_the_last_json_object_and_failures_have_a_reason(gpu: Any, tmp_path: Path) -> None:
    session = gpu.Session(tmp_path, time.monotonic() + 600)
    shown = json.dumps(figures(3.0))
    assert session.step("m", "plan", ["-c", f"print('progress'); print('{shown}')"]) == figures(3.0)
    indented = json.dumps(figures(4.0), indent=1)
    assert session.step("m", "plan", ["-c", f"print({indented!r})"]) == figures(4.0)
    logged = f"print({{'loss': 1.0}}); print({shown!r})"  # a Trainer prints dicts of its own
    assert session.step("m", "B-FP peer", ["-c", logged]) == figures(3.0)
    failed = session.step("m", "B-FP", ["-c", "raise SystemExit('no memory left')"])
    assert failed == {"failed": "exit code 1: no memory left"}
    late = gpu.Session(tmp_path, time.monotonic() - 1, session.found)
    assert late.step("m", "B-Q4", ["-c", "print('{}')"]) == {"failed": "no time left"}
    assert json.loads((tmp_path / "gpu.json").read_text()) == session.found
    assert gpu.missing(session.found) == ["m, B-FP: exit code 1: no memory left", "m, B-Q4: no time left"]


def test_report_compares_the_plan_with_the_tuned_peer_of_b_q4(gpu: Any) -> None:
    planning = {"bytes": 90, "budget": 100, "planning_seconds": {"measuring": 2.0, "choosing": 1.0}}
    found = {
        "SmolLM2": {
            "planning": [planning],
            "plan": [figures(300.0), figures(330.0)],
            "B-Q4 tuned peer": [figures(100.0), figures(100.0)],
        },
        "random Llama": {"planning": [{"failed": "no time left"}]},
    }
    report = gpu.report_of(found)
    assert "Plan of 90 bytes in a budget of 100: 2.0 s to measure, 1.0 s to choose." in report
    assert "3.15 (3.00–3.30)" in report and "No plan: no time left." in report
    assert "Not measured: random Llama, planning: no time left." in report
