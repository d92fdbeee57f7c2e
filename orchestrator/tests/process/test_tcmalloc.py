"""tcmalloc is preloaded into runs where it is found; what the user preloads stays, and 0 turns it off."""

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
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import make_spec

SPEC = make_spec(find_profile("smoke"), "B-FP", "toy_sentences")
linux = pytest.mark.skipif(platform.system() != "Linux", reason="libraries are preloaded on Linux alone")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file where this Python's own library would be; its content is never read."""
    found = tmp_path / "lib" / "libtcmalloc_minimal.so.4"
    found.parent.mkdir()
    found.touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.delenv("BITRANK_TCMALLOC", raising=False)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    return found


@linux
@pytest.mark.parametrize("theirs", ["", "/a.so", "/a.so /b.so", "/a.so:/b.so"])
def test_it_is_preloaded_after_what_the_user_preloads(
    library: Path, monkeypatch: pytest.MonkeyPatch, theirs: str
) -> None:
    monkeypatch.setenv("LD_PRELOAD", theirs)
    environment = run_environment(SPEC)
    assert environment["LD_PRELOAD"] == ":".join([*theirs.replace(":", " ").split(), str(library)])
    assert str(library) in heap_description()
    monkeypatch.setenv("LD_PRELOAD", environment["LD_PRELOAD"])
    assert run_environment(SPEC)["LD_PRELOAD"] == environment["LD_PRELOAD"], (
        "a run within a run preloads it once"
    )


@linux
def test_an_allocator_that_the_user_preloads_is_the_runs(
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
def test_a_folder_that_the_loader_cannot_read_is_passed_over(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaced = tmp_path / "my python"
    (spaced / "lib").mkdir(parents=True)
    (spaced / "lib" / library.name).touch()
    monkeypatch.setattr(sys, "prefix", str(spaced))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    assert find_tcmalloc() == library


def test_it_is_not_looked_for_when_it_is_not_wanted(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITRANK_TCMALLOC", "0")
    assert find_tcmalloc() is None and "BITRANK_TCMALLOC=0" in heap_description()
    assert not software._allocator().install, "it was turned off, and may well be there"


def test_glibcs_heap_keeps_what_is_freed_but_for_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITRANK_TCMALLOC", "0")
    free, bound = heap_environment(limited=False), heap_environment(limited=True)
    assert set(free) == set(bound) == {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX"}
    assert int(bound["MALLOC_MMAP_THRESHOLD_"]) < int(free["MALLOC_MMAP_THRESHOLD_"])


@linux
def test_the_doctor_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITRANK_TCMALLOC", raising=False)
    for part in ("bitrank.doctor.software.find_tcmalloc", "bitrank.process.tcmalloc.find_tcmalloc"):
        monkeypatch.setattr(part, lambda: None)
    found = software._allocator()
    assert found.state.startswith("runs take their memory from the C library: ")
    assert found.install == "sudo apt-get install libtcmalloc-minimal4"


# Blocks of one size with another between each two of them; those between are freed and as many are asked for again.
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
def test_with_it_what_is_freed_serves_the_next_of_its_size() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HOLES], env=run_environment(SPEC), capture_output=True, text=True, check=True
    )
    from_tcmalloc, grown = done.stdout.split()
    assert from_tcmalloc == "True" and float(grown) < 4, "96 MiB were freed and asked for again"


@needed
def test_what_a_run_takes_before_its_model_is_measured_with_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path))
    with_it = import_memory(SPEC)
    monkeypatch.setenv("BITRANK_TCMALLOC", "0")
    assert import_memory(SPEC) != with_it


_PLAN = ["plan", "--task", "toy_sentences", "--model", "tiny-bert", "--budget", "8bits"]


def _plain_environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name not in {"LD_PRELOAD", "BITRANK_TCMALLOC_TRIED"}
    }


_MODULE, _SCRIPT = [sys.executable, "-m", "bitrank"], [str(Path(sys.executable).with_name("bitrank"))]


@needed
@pytest.mark.parametrize(
    ("start", "refused"),
    [pytest.param(_MODULE, False, marks=pytest.mark.slow), (_SCRIPT, False), (_SCRIPT, True)],
)
def test_planning_takes_its_memory_from_tcmalloc(start: list[str], refused: bool, tmp_path: Path) -> None:
    """What is mapped into the process when it has loaded torch."""
    told = "import pathlib; print('tcmalloc' in pathlib.Path('/proc/self/maps').read_text())"
    (tmp_path / "sitecustomize.py").write_text(
        f"import atexit\n\n\n@atexit.register\ndef tell() -> None:\n    {told}\n"
    )
    surroundings = {
        **_plain_environment(),
        "PYTHONPATH": str(tmp_path),
        "BITRANK_TCMALLOC": "0" if refused else "1",
    }
    done = subprocess.run(
        [*start, *_PLAN], env=surroundings, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert [line for line in done.stdout.splitlines() if line in {"True", "False"}] == [str(not refused)], (
        "told once, at the one end"
    )


@needed
def test_a_loader_that_takes_the_library_away_is_asked_once(tmp_path: Path) -> None:
    """A Python whose start forgets what is preloaded, as one with privileges does."""
    forgetful = tmp_path / "python"
    forgetful.write_text(
        f'#!/bin/sh\necho "started $3" >> "{tmp_path}/starts"\nunset LD_PRELOAD\nexec "{sys.executable}" "$@"\n'
    )
    forgetful.chmod(0o755)
    asked = f"import sys; sys.executable = {str(forgetful)!r}; from bitrank.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [forgetful, "-c", asked, *_PLAN],
        env=_plain_environment(),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert "bits by block" in done.stdout and (tmp_path / "starts").read_text().split().count("plan") == 2
