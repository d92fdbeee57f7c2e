"""`make install` refuses a Python or a machine without wheels before it makes an environment."""

from __future__ import annotations

import os
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


def test_torch_is_installed_from_the_index_of_its_build(tmp_path: Path) -> None:
    """pip first for cpu and cuda; only uv for rocm or a named backend; only pip with index arguments."""
    installer_log = tmp_path / "installers.log"
    for name, code in (("pip", 1), ("python", 0)):
        (tmp_path / name).write_text(
            f'#!/bin/sh\necho {name} "$@" >> "{installer_log}"\n'
            f'case "$*" in *uv*) exit 0;; esac\nexit {code}\n'
        )
        (tmp_path / name).chmod(0o755)

    def lines(**given: str) -> list[str]:
        installer_log.write_text("")
        environment = {
            "PATH": os.environ["PATH"],
            "PIP": str(tmp_path / "pip"),
            "PY": str(tmp_path / "python"),
            "TMPDIR": str(tmp_path),
            **given,
        }
        subprocess.run(
            ["bash", "tools/install-torch.sh"], cwd=ROOT, env=environment, capture_output=True, check=False
        )
        return installer_log.read_text().splitlines()

    def pip(hardware: str, words: str = "") -> str:
        return f"pip install {words}-c constraints.txt -c constraints/torch-{hardware}.txt torch"

    def uv(backend: str) -> list[str]:
        return [
            "pip install uv==0.13.9",
            f"python -m uv pip install -q --python {tmp_path}/python --torch-backend {backend} torch==2.13.0",
        ]

    assert lines(TORCH="cpu") == [pip("cpu"), *uv("cpu")]
    assert lines(TORCH="cuda") == [pip("cuda")]
    assert lines(TORCH="cuda", TORCH_BACKEND="cu126") == uv("cu126")
    assert lines(TORCH="rocm") == uv("rocm7.2")
    assert lines(TORCH="cpu", TORCH_INDEX_ARGS="--find-links=/wheels") == [
        pip("cpu", "--find-links=/wheels ")
    ]
    assert not list(tmp_path.glob("bitrank-torch*"))  # the log of pip
