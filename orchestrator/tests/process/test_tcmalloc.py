"""tcmalloc is preloaded into runs after the user's libraries; ``BITRANK_TCMALLOC=0`` disables it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from bitrank.doctor import software
from bitrank.forecast.import_memory import import_memory
from bitrank.process.environment import run_environment
from bitrank.process.tcmalloc import find_tcmalloc, heap_description, heap_environment
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile

SPEC = make_spec(find_profile("smoke"), "B-FP", "toy_sentences")
linux = pytest.mark.skipif(platform.system() != "Linux", reason="libraries are preloaded on Linux only")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty file at the path of this Python's own tcmalloc; its content is never read."""
    found = tmp_path / "lib" / "libtcmalloc_minimal.so.4"
    found.parent.mkdir()
    found.touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.delenv("BITRANK_TCMALLOC", raising=False)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    return found


@linux
@pytest.mark.parametrize("preloaded", ["", "/a.so", "/a.so /b.so", "/a.so:/b.so"])
def test_tcmalloc_is_preloaded_after_the_users_libraries(
    library: Path, monkeypatch: pytest.MonkeyPatch, preloaded: str
) -> None:
    monkeypatch.setenv("LD_PRELOAD", preloaded)
    environment = run_environment(SPEC)
    assert environment["LD_PRELOAD"] == ":".join([*preloaded.replace(":", " ").split(), str(library)])
    assert str(library) in heap_description()
    monkeypatch.setenv("LD_PRELOAD", environment["LD_PRELOAD"])
    assert run_environment(SPEC)["LD_PRELOAD"] == environment["LD_PRELOAD"], (
        "a run within a run preloads it once"
    )


@linux
def test_allocator_preloaded_by_the_user_is_used_for_runs(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/opt/libjemalloc.so.2")
    assert find_tcmalloc() is None and run_environment(SPEC)["LD_PRELOAD"] == "/opt/libjemalloc.so.2"
    monkeypatch.setenv("LD_PRELOAD", "/a.so /opt/libtcmalloc.so.4")
    assert (
        find_tcmalloc() == Path("/opt/libtcmalloc.so.4")
        and run_environment(SPEC)["LD_PRELOAD"] == "/a.so:/opt/libtcmalloc.so.4"
    )


@linux
def test_folder_with_a_space_is_skipped_because_the_loader_splits_there(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaced = tmp_path / "my python"
    (spaced / "lib").mkdir(parents=True)
    (spaced / "lib" / library.name).touch()
    monkeypatch.setattr(sys, "prefix", str(spaced))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    assert find_tcmalloc() == library


def test_tcmalloc_is_not_used_if_disabled(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITRANK_TCMALLOC", "0")
    assert find_tcmalloc() is None and "BITRANK_TCMALLOC=0" in heap_description()
    assert not software._allocator().install, "disabled, so the doctor suggests no installation"


def test_glibc_retains_less_freed_memory_under_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITRANK_TCMALLOC", "0")
    unlimited, under_limit = heap_environment(limited=False), heap_environment(limited=True)
    assert (
        set(unlimited)
        == set(under_limit)
        == {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX"}
    )
    assert int(under_limit["MALLOC_MMAP_THRESHOLD_"]) < int(unlimited["MALLOC_MMAP_THRESHOLD_"])


@linux
def test_doctor_gives_the_install_command_for_tcmalloc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITRANK_TCMALLOC", raising=False)
    for part in ("bitrank.doctor.software.find_tcmalloc", "bitrank.process.tcmalloc.find_tcmalloc"):
        monkeypatch.setattr(part, lambda: None)
    found = software._allocator()
    assert found.state.startswith("runs take their memory from the C library: ")
    assert found.install == "sudo apt-get install libtcmalloc-minimal4"


# Blocks of one size, alternately retained and freed; then as many as were freed are allocated again.
_HOLES = """
import torch
from bitrank_trainer import has_tcmalloc, peak_memory_mib
kept, between = [], []
for _ in range(96):
    kept.append(torch.ones(2**18))
    between.append(torch.ones(2**18))
before = peak_memory_mib()
for _ in range(8):
    between.clear()
    between = [torch.ones(2**18) for _ in range(96)]
print(has_tcmalloc(), peak_memory_mib() - before)
"""


needed = pytest.mark.skipif(
    find_tcmalloc() is None, reason=f"runs take their memory from {heap_description()}"
)


@needed
def test_tcmalloc_reuses_freed_blocks_of_the_same_size() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HOLES], env=run_environment(SPEC), capture_output=True, text=True, check=True
    )
    from_tcmalloc, grown = done.stdout.split()
    assert from_tcmalloc == "True" and float(grown) < 4, "96 MiB were freed and allocated again"


@needed
def test_import_memory_is_measured_separately_for_each_allocator(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path))
    with_tcmalloc = import_memory(SPEC)
    monkeypatch.setenv("BITRANK_TCMALLOC", "0")
    assert import_memory(SPEC) != with_tcmalloc


_PLAN = [
    "plan",
    "--quantizer",  # others gather moments in a process of their own
    "rtn",
    "--task",
    "toy_sentences",
    "--model",
    "tiny-bert",
    "--budget",
    "8bits",
    "--set",
    "max_length=64",
]


def _plain_environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name not in {"LD_PRELOAD", "BITRANK_TCMALLOC_TRIED"}
    }


_MODULE, _SCRIPT = [sys.executable, "-m", "bitrank"], [str(Path(sys.executable).with_name("bitrank"))]


@needed
@pytest.mark.parametrize(
    ("start", "disabled"),
    [pytest.param(_MODULE, False, marks=pytest.mark.slow), (_SCRIPT, False), (_SCRIPT, True)],
)
def test_plan_command_uses_tcmalloc_unless_disabled(start: list[str], disabled: bool, tmp_path: Path) -> None:
    """The process's memory map is inspected at exit, after torch was loaded."""
    probe = "import pathlib; print('tcmalloc' in pathlib.Path('/proc/self/maps').read_text())"
    (tmp_path / "sitecustomize.py").write_text(
        f"import atexit\n\n\n@atexit.register\ndef report() -> None:\n    {probe}\n"
    )
    environment = {
        **_plain_environment(),
        "PYTHONPATH": str(tmp_path),
        "BITRANK_TCMALLOC": "0" if disabled else "1",
    }
    done = subprocess.run(
        [*start, *_PLAN], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert [line for line in done.stdout.splitlines() if line in {"True", "False"}] == [str(not disabled)], (
        "printed once, at the single exit"
    )


@needed
def test_restart_is_tried_once_if_the_loader_removes_the_library(tmp_path: Path) -> None:
    """The Python of this test unsets LD_PRELOAD at start, as a privileged one does."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho "started $3" >> "{tmp_path}/starts"\n'
        f'unset LD_PRELOAD\nexec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    program = (
        f"import sys; sys.executable = {str(python)!r}; from bitrank.cli.main import main; sys.exit(main())"
    )
    done = subprocess.run(
        [python, "-c", program, *_PLAN],
        env=_plain_environment(),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert "bits by block" in done.stdout and (tmp_path / "starts").read_text().split().count("plan") == 2
