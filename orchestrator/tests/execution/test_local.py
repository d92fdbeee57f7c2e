"""The default number of parallel runs follows from cores, memory and what the runs share."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from bitrank.execution import local
from bitrank.execution.local import choose_slots
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec


def specs(*devices: str, threads: int = 1) -> list[RunSpec]:
    profile = find_profile("smoke")
    return [
        make_spec(profile, "B-FP", "toy_sentences", {"device": device, "threads": threads})
        for device in devices
    ]


@pytest.fixture(params=["nvidia-smi", "rocm-smi", "apple", None])
def accelerator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """A machine of eight free cores and much memory with this accelerator."""
    monkeypatch.setattr(local, "usable_cores", lambda: 8)
    monkeypatch.setattr(local.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**40))
    monkeypatch.setattr(local.shutil, "which", lambda tool: tool if tool == request.param else None)
    monkeypatch.setattr(local, "is_apple", lambda: request.param == "apple")
    return request.param


def test_runs_on_the_cpu_go_side_by_side_beside_an_idle_accelerator(accelerator: str | None) -> None:
    assert choose_slots(specs("cpu", "cpu")) == 8
    assert choose_slots(specs("cpu", threads=2)) == 4


def test_runs_that_may_share_an_accelerator_go_one_at_a_time(accelerator: str | None) -> None:
    alone = 8 if accelerator is None else 1
    assert choose_slots(specs("auto")) == choose_slots(specs("cpu", "auto")) == alone
