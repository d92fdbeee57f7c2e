"""Compile the C files of this folder once per machine, into the cache folder.

The file name contains a hash of the source, the compiler and the target CPU (both identified by the
compiler's predefined macros), so an outdated library is never loaded. A digest file beside it proves that the
library is complete: loading a truncated one can crash the process.

Threads come from the OpenMP runtime that torch ships, since a second runtime would start a second set of
threads. The library is linked against torch's file; without that file, or with a compiler that needs another
runtime, it is built single-threaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from platformdirs import user_cache_path

_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-fno-strict-aliasing", "-fno-math-errno", "-fno-trapping-math")
_TARGETS = (("-march=native",), ("-mcpu=native",), ())  # the flag for "this CPU" on x86, on ARM, or none
_TIMEOUT_S = 120


@dataclass(frozen=True)
class Source:
    """A C file, the header that it includes, and its own compiler flags."""

    name: str
    header: str
    flags: tuple[str, ...]

    @property
    def paths(self) -> tuple[Path, Path]:
        return Path(__file__).with_name(f"{self.name}.c"), Path(__file__).with_name(self.header)


# No fused multiply-add: it would round once where torch rounds twice.
DECODE = Source("decode", "codes.h", ("-ffp-contract=off",))
# -Wno-psabi: vectors wider than the CPU's registers never cross a call, since everything is inlined.
ROWS = Source("rows", "vectors.h", ("-ffp-contract=fast", "-Wno-psabi"))
QUANTIZE = Source("quantize", "vectors.h", ("-ffp-contract=off", "-Wno-psabi"))


class BuildError(Exception):
    """The reason why there is no compiled library, phrased as the end of a sentence."""


@dataclass(frozen=True)
class Built:
    """A loaded library, its compiler, and the OpenMP runtime shared with torch (None: single-threaded)."""

    library: ctypes.CDLL
    compiler: str
    openmp: str | None


def load(source: Source = DECODE) -> Built:
    """Load the library of ``source`` from the cache; compile it if absent. Raises :class:`BuildError`."""
    compiler = find_compiler()
    target, macros = _target(compiler)
    openmp = torch_openmp()
    flags = (*_FLAGS, *source.flags)
    key = hashlib.sha256(
        b"\0".join(
            [
                *(path.read_bytes() for path in source.paths),
                macros,
                " ".join(flags).encode(),
                str(openmp and openmp.name).encode(),
            ]
        )
    )
    try:
        place = cache_folder() / f"{source.name}-{key.hexdigest()[:16]}.so"
        with FileLock(place.with_suffix(".lock")):
            if not _is_complete(place):
                _build(place, source.paths[0], [*compiler, *flags, *target], openmp)
        shared = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))["openmp"]
        return Built(ctypes.CDLL(str(place)), Path(compiler[0]).name, shared)
    except (OSError, NotImplementedError) as problem:  # the latter: a file system without locks
        raise BuildError(f"the compiled kernels cannot be kept or loaded: {problem}") from problem


def cache_folder() -> Path:
    """The kernels' part of ``$BITRANK_CACHE`` or of the platform's cache folder, with mode 0700.

    Raises :class:`BuildError` if another user owns the folder or may write to it: a library in it would run
    with this user's rights.
    """
    folder = Path(os.environ.get("BITRANK_CACHE") or user_cache_path("bitrank")) / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_private(folder)
    if hasattr(os, "getuid") and stat.S_IMODE(folder.stat().st_mode) != 0o700:
        with suppress(OSError):  # a read-only disk; nobody can write to it
            folder.chmod(0o700)
    return folder


def check_private(path: Path) -> None:
    """Raise :class:`BuildError` unless this user owns ``path`` and nobody else may write to it.

    Does nothing on Windows, which has no such modes.
    """
    if not hasattr(os, "getuid"):
        return
    state = path.lstat()
    if state.st_uid != os.getuid():
        raise BuildError(
            f"{path} belongs to user {state.st_uid}, not to this user ({os.getuid()}), and code in it would "
            "run as this user; remove it or set BITRANK_CACHE to a folder of your own"
        )
    if stat.S_ISLNK(state.st_mode):
        raise BuildError(
            f"{path} is a symbolic link, and its target may change hands; "
            "remove it, or link the cache folder as a whole"
        )
    if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BuildError(
            f"other users may write to {path}, and code in it would run as this user; "
            f"run `chmod 700 {path.parent}`"
        )


def find_compiler() -> list[str]:
    """Command of the C compiler: ``$CC`` or the first of cc, gcc and clang. Raises :class:`BuildError`."""
    for name in (os.environ.get("CC", ""), *_COMPILERS):
        command = shlex.split(name)
        if command and shutil.which(command[0]):
            return command
    raise BuildError(f"no C compiler found ($CC, {', '.join(_COMPILERS)}); install one, gcc for example")


def torch_openmp() -> Path | None:
    """The libgomp in torch's own folder; None where torch uses another runtime."""
    package = Path(torch.__file__).parent
    found = [
        path
        for folder in (package / "lib", package.with_name("torch.libs"))
        for path in sorted(folder.glob("libgomp*.so*"))
    ]
    return found[0] if found else None


def _target(compiler: list[str]) -> tuple[tuple[str, ...], bytes]:
    """The first supported flags for this CPU, and the macros that the compiler predefines with them."""
    for target in _TARGETS:
        done = _run([*compiler, *target, "-dM", "-E", "-x", "c", os.devnull])
        if done.returncode == 0:
            return target, done.stdout
    raise BuildError(f"{shlex.join(compiler)} does not work: {_first_line(done)}")


def _is_complete(place: Path) -> bool:
    """Whether ``place`` is private to this user and matches the digest recorded when it was built."""
    try:
        check_private(place)
        check_private(place.with_suffix(".json"))
        record = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
        return record["sha256"] == hashlib.sha256(place.read_bytes()).hexdigest()
    except (OSError, ValueError, KeyError, TypeError, BuildError):
        return False


def _build(place: Path, source: Path, command: list[str], openmp: Path | None) -> None:
    """Compile into a temporary folder, then move the library and after it the digest to ``place``.

    An interrupted build therefore leaves no file that counts as complete.
    """
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        made = Path(folder) / place.name
        shared = _compile(source, command, openmp, made)
        record = made.with_suffix(".json")
        record.write_text(
            json.dumps({"sha256": hashlib.sha256(made.read_bytes()).hexdigest(), "openmp": shared}),
            encoding="utf-8",
        )
        for path in (made, record):
            path.chmod(0o600)  # a umask of 002 lets the group write, and check_private would refuse that
        made.replace(place)
        record.replace(place.with_suffix(".json"))


def _compile(source: Path, command: list[str], openmp: Path | None, made: Path) -> str | None:
    """Compile ``source`` to ``made``; return the OpenMP runtime that it uses. Raises :class:`BuildError`."""
    for runtime in dict.fromkeys((openmp, None)):
        threads = ["-fopenmp"] if runtime else []
        done = _run([*command, *threads, "-c", str(source), "-o", f"{made}.o"])
        if done.returncode == 0:
            # Link without -fopenmp, which would add the compiler's own runtime, and allow no undefined
            # symbols, which would fail only when called.
            checked = ["-Wl,-z,defs"] if runtime else []
            done = _run(
                [
                    *command,
                    "-shared",
                    f"{made}.o",
                    *([str(runtime)] if runtime else []),
                    *checked,
                    "-o",
                    str(made),
                ]
            )
        if done.returncode == 0:
            return runtime.name if runtime else None
    raise BuildError(f"{shlex.join(command)} cannot compile the kernels: {_first_line(done)}")


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            command, capture_output=True, check=False, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise BuildError(f"{command[0]} cannot be run: {problem}") from problem


def _first_line(done: subprocess.CompletedProcess[bytes]) -> str:
    return (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"])[0]
