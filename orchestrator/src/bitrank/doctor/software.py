"""Find optional programs and libraries, and give the command that installs each missing one."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from bitrank.process.libraries import LIBRARIES as RUN_LIBRARIES
from bitrank.process.libraries import NOT_INSTALLED, installed_version
from bitrank.process.tcmalloc import find_tcmalloc, heap_description, is_refused

LIBRARIES = (*RUN_LIBRARIES, "mlflow", "gguf")
_TEX = ("pdflatex", "bibtex", "latexmk", "pdffonts", "aspell")
_TEX_DEBIAN = (
    "texlive-latex-recommended texlive-fonts-recommended lmodern latexmk poppler-utils aspell aspell-en"
)
_TEX_BREW = "brew install --cask mactex-no-gui && brew install poppler aspell"
_ENGINE_SECONDS = 10


@dataclass(frozen=True)
class Found:
    """The state of a program or library, and the command that installs it; empty if none is needed."""

    state: str
    install: str = ""


def programs() -> dict[str, Found]:
    """Return the state of every optional program and library, by its purpose."""
    return {name: look() for name, look in _LOOKS.items()}


def version_of(name: str) -> str:
    """The version of the distribution ``name``, or the command that installs it."""
    found = installed_version(name)
    return f"{found}: make install" if found == NOT_INSTALLED else found


def _library(module: str, distribution: str, use: str, extra: str | None = None) -> Callable[[], Found]:
    """Return a check for an optional library.

    ``extra`` is the extra of bitrank that installs it, if there is one.
    """

    def look() -> Found:
        if find_spec(module) is None:
            requirement = f"'bitrank[{extra}]'" if extra else distribution
            return Found(f"not installed ({use})", f"{sys.executable} -m pip install {requirement}")
        return Found(f"{version_of(distribution.partition('[')[0])} ({use})")

    return look


def _tex() -> Found:
    missing = [program for program in _TEX if shutil.which(program) is None]
    if not missing:
        return Found("here (make paper)")
    command = (
        _TEX_BREW
        if platform.system() == "Darwin"
        else f"sudo apt-get install --no-install-recommends {_TEX_DEBIAN}"
    )
    return Found(f"missing {', '.join(missing)} (make paper)", command)


def _engine() -> Found:
    """Return the state of Docker or podman, including whether its engine responds."""
    for program in ("docker", "podman"):
        if shutil.which(program):
            return Found(f"{program}: {_answer(program)}")
    command = (
        "brew install --cask docker" if platform.system() == "Darwin" else "sudo apt-get install docker.io"
    )
    return Found("neither docker nor podman (images)", command)


def _answer(program: str) -> str:
    try:
        done = subprocess.run(
            [program, "info"], capture_output=True, text=True, timeout=_ENGINE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"installed, but it does not answer ({type(error).__name__})"
    if done.returncode == 0:
        return "installed, its engine answers"
    reason = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
    return f"installed, but its engine does not answer: {reason[-1][:160]}"


def _browser() -> Found:
    here = any(shutil.which(name) for name in ("chromium", "google-chrome"))
    return (
        Found("here (browser tests)")
        if here
        else Found("missing (browser tests)", "sudo apt-get install chromium chromium-driver")
    )


def _compiler() -> Found:
    here = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    command = "xcode-select --install" if platform.system() == "Darwin" else "sudo apt-get install gcc g++"
    return (
        Found(f"{here} (decoding low bits, quanto)")
        if here
        else Found("missing (decoding low bits, quanto)", command)
    )


def _allocator() -> Found:
    """Return the state of the memory allocator.

    Only Linux needs tcmalloc: the heap growth that it prevents was seen with glibc.
    """
    if platform.system() != "Linux" or is_refused() or find_tcmalloc() is not None:
        return Found(f"runs take their memory from {heap_description()}")
    more = (
        f"runs take their memory from {heap_description()}: "
        "on a CPU half again above imports of what they take from tcmalloc"
    )
    return Found(more, "sudo apt-get install libtcmalloc-minimal4")


_LOOKS: dict[str, Callable[[], Found]] = {
    "compiler": _compiler,
    "allocator": _allocator,
    "TeX": _tex,
    "containers": _engine,
    "Ray": _library("ray", "ray", "runs on several machines", "ray"),
    "Weights & Biases": _library("wandb", "wandb", "a second tracker"),
    "Postgres for MLflow": _library("psycopg2", "psycopg2-binary", "a tracking server on Postgres"),
    "Postgres for reports": _library(
        "adbc_driver_postgresql", "adbc-driver-postgresql", "reports from a Postgres store"
    ),
    "kernels": _library("kernels", "kernels", "a faster 4-bit product of bitsandbytes"),
    "browser": _browser,
}
