"""tcmalloc is preloaded into runs where it is found; what the user preloads stays, and 0 turns it off."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from bitrank.allocator import find_tcmalloc, heap_environment, tcmalloc_status
from bitrank.doctor import software
from bitrank.environment import run_environment
from bitrank.profiles import find_profile
from bitrank.specs import make_spec

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
    return found


@linux
@pytest.mark.parametrize("theirs", ["", "/a.so", "/a.so /b.so", "/a.so:/b.so"])
def test_it_is_preloaded_after_what_the_user_preloads(library: Path, monkeypatch: pytest.MonkeyPatch, theirs: str) -> None:
    monkeypatch.setenv("LD_PRELOAD", theirs)
    environment = run_environment(SPEC)
    assert environment["LD_PRELOAD"] == ":".join([*theirs.replace(":", " ").split(), str(library)])
    assert not [name for name in environment if name.startswith("MALLOC_") and name not in os.environ]
    assert str(library) in tcmalloc_status()
    monkeypatch.setenv("LD_PRELOAD", environment["LD_PRELOAD"])
    assert run_environment(SPEC)["LD_PRELOAD"] == environment["LD_PRELOAD"], "a run within a run preloads it once"


def test_it_is_not_looked_for_when_it_is_not_wanted(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITRANK_TCMALLOC", "0")
    assert find_tcmalloc() is None and "BITRANK_TCMALLOC=0" in tcmalloc_status()


def test_without_it_the_c_librarys_heap_keeps_what_is_freed_but_for_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITRANK_TCMALLOC", "0")
    free, bound = heap_environment(limited=False), heap_environment(limited=True)
    assert set(free) == set(bound) == {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX"}
    assert int(bound["MALLOC_MMAP_THRESHOLD_"]) < int(free["MALLOC_MMAP_THRESHOLD_"])


@linux
def test_the_doctor_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "find_tcmalloc", lambda: None)
    assert software.programs()["allocator"].install == "sudo apt-get install libtcmalloc-minimal4"


# Blocks of one size with another between each two of them; those between are freed and as many are asked for again.
_HOLES = """
import torch
from bitrank_trainer import allocator, peak_memory_mib
kept, between = [], []
for _ in range(96):
    kept.append(torch.ones(2**18))
    between.append(torch.ones(2**18))
before = peak_memory_mib()
for _ in range(8):
    between.clear()
    between = [torch.ones(2**18) for _ in range(96)]
print(allocator(), peak_memory_mib() - before)
"""


@pytest.mark.skipif(find_tcmalloc() is None, reason="no tcmalloc here: apt-get install libtcmalloc-minimal4")
def test_with_it_what_is_freed_serves_the_next_of_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def growth() -> tuple[str, float]:
        done = subprocess.run([sys.executable, "-c", _HOLES], env=run_environment(SPEC), capture_output=True, text=True, check=True)
        name, grown = done.stdout.split()
        return name, float(grown)

    name, grown = growth()
    assert name == "tcmalloc" and grown < 4, "96 MiB were freed"
    monkeypatch.setenv("BITRANK_TCMALLOC", "0")
    assert growth()[0] == "system"
