"""Choose a run's memory allocator: gperftools' tcmalloc if Linux has it, otherwise the C library's.

PyTorch allocates blocks aligned to 64 bytes. glibc (2.36) cuts each from a larger block, and a freed block
may not fit the next one of the same size, depending on the heap's start address: the heap grew to one and a
half times the live bytes, by a different amount in every run. tcmalloc has size classes, all of them aligned.
The results of a run do not depend on the allocator.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import sysconfig
from pathlib import Path

_NAMES = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4")
_OTHERS = ("jemalloc", "mimalloc", "tbbmalloc", "hoard")
_TRIED = "BITRANK_TCMALLOC_TRIED"
# Block size in bytes above which tcmalloc prints a message; this value disables the message.
_SILENT = str(2**62)


def find_tcmalloc() -> Path | None:
    """Return the path of the tcmalloc library for runs; None if runs use another allocator.

    A library that the user preloads takes precedence over those in this Python's and the system's folders.
    None on other systems than Linux, with ``BITRANK_TCMALLOC=0``, or if the user preloads another allocator.
    """
    if platform.system() != "Linux" or is_refused():
        return None
    preloaded = _preloaded()
    if theirs := [name for name in preloaded if "tcmalloc" in Path(name).name]:
        return Path(theirs[0])
    if any(other in Path(name).name for name in preloaded for other in _OTHERS):
        return None
    system = (f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}", "/usr/lib64", "/usr/lib", "/usr/local/lib")
    folders = [Path(sys.prefix) / "lib", Path(sys.base_prefix) / "lib", *map(Path, system)]
    found = (folder / name for folder in folders for name in _NAMES if (folder / name).exists())
    # The loader splits LD_PRELOAD at spaces and colons, so such a path cannot be preloaded.
    return next((path for path in found if not set(" :") & set(str(path))), None)


def is_refused() -> bool:
    """Return whether ``BITRANK_TCMALLOC=0`` is set."""
    return os.environ.get("BITRANK_TCMALLOC") == "0"


def heap_environment(limited: bool) -> dict[str, str]:
    """Return the environment variables for a run's heap. The user's preloaded libraries are kept.

    glibc's variables are set in any case, because the loader may skip tcmalloc. Without them glibc maps and
    unmaps large temporaries at each step; under a memory limit (``limited``) it must return them to the
    system. tcmalloc needs no such setting to reuse freed memory.
    """
    keep, trim = ("1048576", "16777216") if limited else ("268435456", "1073741824")
    heap = {"MALLOC_MMAP_THRESHOLD_": keep, "MALLOC_TRIM_THRESHOLD_": trim, "MALLOC_ARENA_MAX": "1"}
    if (library := find_tcmalloc()) is None:
        return heap
    preloaded = dict.fromkeys([*_preloaded(), str(library)])
    return {**heap, "LD_PRELOAD": ":".join(preloaded), "TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD": _SILENT}


def adopt() -> None:
    """Restart this program in the same process with tcmalloc, unless it is active or unavailable.

    For commands that hold a model in their own process. Must be called before there is any state to lose. A
    program that runs inside another (a notebook, ``runpy``) is not restarted. One attempt is made, because
    the loader may remove the library again.
    """
    library = find_tcmalloc()
    from_a_shell = sys.orig_argv[len(sys.orig_argv) - len(sys.argv) + 1 :] == sys.argv[1:]
    if library is None or str(library) in _preloaded() or _TRIED in os.environ or not from_a_shell:
        return
    with contextlib.suppress(OSError):
        os.execve(
            sys.executable,
            [sys.executable, *sys.orig_argv[1:]],
            {**os.environ, **heap_environment(limited=False), _TRIED: "1"},
        )


def heap_description() -> str:
    """Return a short description of the allocator that runs on this machine use."""
    if (library := find_tcmalloc()) is not None:
        return f"tcmalloc ({library})"
    return "the C library, as BITRANK_TCMALLOC=0 says" if is_refused() else "the C library"


def _preloaded() -> list[str]:
    return os.environ.get("LD_PRELOAD", "").replace(":", " ").split()
