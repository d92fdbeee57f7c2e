"""Meters report this process only, and hardware choices are validated."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bitrank_trainer import (
    TrainError,
    choose_device,
    choose_dtype,
    peak_memory_mib,
    pin_threads,
    usable_threads,
    width_multiple,
)

_CHILD = "from bitrank_trainer.memory.meters import peak_memory_mib; import sys; print(peak_memory_mib())"


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM requires Linux")
def test_peak_memory_excludes_the_parent_process() -> None:
    small = float(
        subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, text=True, check=True).stdout
    )
    allocated = bytearray(1500 * 2**20)
    allocated[::4096] = b"x" * len(allocated[::4096])
    child = float(
        subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, text=True, check=True).stdout
    )
    assert peak_memory_mib() > 1500 > child
    assert child < small * 1.5
    del allocated


# Byte strings instead of tensors: tensor blocks are aligned, and whether a freed one fits the next is chance
# with glibc.
_FAULTS = """
import resource, sys
from bitrank_trainer import keep_memory
if "keep" in sys.argv:
    keep_memory()
b"x" * 2**26
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for size in range(2**26, 2**26 + 8):  # eight sizes, else Python would cache the constant
    b"x" * size
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc unmaps large blocks on free")
def test_keep_memory_avoids_repeated_page_faults() -> None:
    def faults(*options: str) -> int:
        return int(
            subprocess.run(
                [sys.executable, "-c", _FAULTS, *options], capture_output=True, text=True, check=True
            ).stdout
        )

    assert faults("keep") < faults() / 4


_RELEASE_PROGRAM = """
import torch
from bitrank_trainer import has_tcmalloc, release_memory
from bitrank_trainer.memory.meters import resident_bytes
allocated = [torch.ones(2**18) for _ in range(256)]
del allocated
before = resident_bytes()
release_memory()
print(has_tcmalloc(), before - resident_bytes())
"""
_TCMALLOC = next((str(path) for path in Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4")), None)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="requires glibc")
@pytest.mark.parametrize("preloaded", ["", *([_TCMALLOC] if _TCMALLOC else [])])
def test_release_memory_returns_freed_memory_to_the_system(preloaded: str) -> None:
    kept = {
        "MALLOC_MMAP_THRESHOLD_": str(2**28),
        "MALLOC_TRIM_THRESHOLD_": str(2**30),
        "TCMALLOC_RELEASE_RATE": "0",
        "LD_PRELOAD": preloaded,
    }
    done = subprocess.run(
        [sys.executable, "-c", _RELEASE_PROGRAM],
        env={**os.environ, **kept, "LD_PRELOAD": preloaded},
        capture_output=True,
        text=True,
        check=True,
    )
    from_tcmalloc, released = done.stdout.split()
    assert from_tcmalloc == str(bool(preloaded)) and int(released) > 200 * 2**20, "256 MiB were freed"


def test_choose_device_returns_available_or_raises() -> None:
    assert choose_device() in {"cuda", "mps", "cpu"}
    assert choose_device("cpu") == "cpu"
    assert choose_dtype("cpu") in {"bf16", "fp32"}
    with pytest.raises(TrainError, match="no device 'tpu' on this machine; it has"):
        choose_device("tpu")


@pytest.mark.parametrize(("bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_accelerator_without_bf16_uses_fp16(monkeypatch, bf16: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: bf16)
    assert choose_dtype("cuda") == choose_dtype("mps") == expected


def test_width_multiple_is_8_where_shapes_are_compiled() -> None:
    for device in ("cpu", "cuda"):
        assert [
            width_multiple(device, dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32)
        ] == [8, 8, 1]
    assert width_multiple("mps", torch.bfloat16) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="CPU affinity requires Linux")
def test_default_threads_do_not_exceed_available_cores() -> None:
    core = min(os.sched_getaffinity(0))
    program = (
        f"import os; os.sched_setaffinity(0, [{core}]); "
        "from bitrank_trainer import pin_threads; print(pin_threads(), pin_threads(3))"
    )
    free = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=free
    )
    assert done.stdout.split() == ["1", "3"], "one by default, else the requested number"


def test_usable_threads_are_those_of_the_environment_and_at_most_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = usable_threads()
    for given, expected in {"1": 1, "1,4": 1, "99999": cores, "0": cores, "many": cores}.items():
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert usable_threads() == expected, given


@pytest.mark.parametrize(
    ("environment", "expected"),
    [(None, [8, 4, 2, 1]), ("3", [3, 3, 3, 3]), ("16", [8, 8, 8, 8]), ("0", [8, 4, 2, 1])],
)
def test_default_threads_are_those_of_the_environment_or_a_share_of_the_cores(
    environment: str | None, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitrank_trainer.hardware._cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    before = torch.get_num_threads()
    try:
        assert [pin_threads(None, processes) for processes in (1, 2, 4, 16)] == expected
        assert torch.get_num_threads() == expected[-1]
        assert pin_threads(5, 2) == 5, "a number that the spec sets is not changed"
    finally:
        torch.set_num_threads(before)
