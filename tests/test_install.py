"""`make install` refuses a Python or a machine without wheels before it makes an environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STUB = """#!/bin/sh
# A Python that believes to be another one on another machine.
exec {python} - "$@" <<'END'
import platform, runpy, sys
sys.version_info, sys.platform = {version}, {system!r}
platform.machine, platform.mac_ver = (lambda: {machine!r}), (lambda: ({release!r}, ("", "", ""), ""))
assert sys.argv[1] == "tools/check_machine.py", "nothing is installed"
runpy.run_path(sys.argv[1], run_name="__main__")
END
"""
MAC = "bitrank needs Linux, or macOS 14 or newer on Apple silicon with a Python for arm64; got macOS "


def install(
    folder: Path, version: tuple[int, ...], system: str, machine: str, release: str
) -> subprocess.CompletedProcess[str]:
    stub = folder / "python"
    stub.write_text(
        STUB.format(python=sys.executable, version=version, system=system, machine=machine, release=release)
    )
    stub.chmod(0o755)
    words = ["make", "--no-print-directory", "install", f"PYTHON={stub}", f"VENV={folder / 'venv'}"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("version", "system", "machine", "release", "message"),
    [
        ((3, 10), "linux", "x86_64", "", "bitrank needs Python 3.11 or newer; give one with PYTHON=…"),
        ((3, 12), "darwin", "x86_64", "15.1", f"{MAC}15.1 on x86_64"),
        ((3, 12), "darwin", "arm64", "13.6.1", f"{MAC}13.6.1 on arm64"),
    ],
)
def test_python_or_machine_without_wheels_is_refused_before_anything_is_made(
    tmp_path: Path, version: tuple[int, ...], system: str, machine: str, release: str, message: str
) -> None:
    done = install(tmp_path, version, system, machine, release)
    assert done.returncode != 0 and done.stdout.startswith(message)
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize(
    "where", [("linux", "x86_64", ""), ("linux", "aarch64", ""), ("darwin", "arm64", "14.0")]
)
def test_machines_with_wheels_pass_the_check(where: tuple[str, str, str]) -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    from check_machine import problem

    assert problem((3, 11), *where) == problem((3, 13), *where) == ""
