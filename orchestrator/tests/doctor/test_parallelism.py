"""Whether parallel runs are faster is measured on the machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from bitrank.doctor.parallelism import layers_per_second, measure_pace
from bitrank.process.cores import usable_cores
from bitrank_trainer import pin_threads


def test_layer_speed_is_positive_and_keeps_the_random_state() -> None:
    before = torch.get_rng_state()
    assert layers_per_second(1, 0.2, "fp32") > 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_layers_are_timed_in_the_dtype_of_runs(dtype: str, monkeypatch) -> None:
    dtypes = []
    monkeypatch.setattr("bitrank.doctor.parallelism.usable_cores", lambda: 2)
    monkeypatch.setattr("bitrank_trainer.choose_dtype", lambda device: dtype)
    monkeypatch.setattr(
        "bitrank.doctor.parallelism._paces", lambda threads, dtype: dtypes.append(dtype) or [1.0]
    )
    assert f"a second in {dtype}" in measure_pace()["one run on 2 threads"]
    assert set(dtypes) == {dtype}


def test_recommended_setting_is_the_faster_one(monkeypatch) -> None:
    monkeypatch.setattr("bitrank.doctor.parallelism.usable_cores", lambda: 2)
    for paces, choice in (({2: 10.0, 1: 8.0}, "--jobs 2"), ({2: 20.0, 1: 8.0}, "--jobs 1")):
        monkeypatch.setattr(
            "bitrank.doctor.parallelism._paces",
            lambda threads, dtype, paces=paces: [paces[count] for count in threads],
        )
        assert measure_pace()["faster"].startswith(choice)


@pytest.mark.skipif(sys.platform != "linux", reason="CPU sets exist on Linux only")
def test_usable_cores_follow_the_cpu_set_as_in_the_trainer(monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    assert usable_cores() == pin_threads() <= len(os.sched_getaffinity(0))
    torch.set_num_threads(before)
    core = min(os.sched_getaffinity(0))
    program = (
        f"import os; os.sched_setaffinity(0, [{core}]); "
        "from bitrank.process.cores import usable_cores; print(usable_cores())"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        == "1\n"
    )


def test_single_core_recommends_one_run_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr("bitrank.doctor.parallelism.usable_cores", lambda: 1)
    assert measure_pace() == {"choice": "one core: one run at a time"}
