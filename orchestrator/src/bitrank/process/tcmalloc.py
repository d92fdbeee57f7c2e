"""Who hands out a run's memory: gperftools' tcmalloc where Linux has it, else the C library.

PyTorch asks for blocks aligned to 64 bytes. glibc (2.36) cuts each from a larger one, and a block that was freed need not fit the next of
the same size, by chance of where the heap begins: it grew to half again of what was alive at once, and by another amount in every run.
tcmalloc has classes of sizes, all of them aligned. The numbers of a run do not depend on it.
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
_SILENT = str(2**62)  # bytes of a block of which tcmalloc says on stderr that it is large


def find_tcmalloc() -> Path | None:
    """The tcmalloc that runs take their memory from: the one that the user preloads, or the first in this Python's folders and the
    system's. None on other systems than Linux, with ``BITRANK_TCMALLOC=0``, and where the user preloads another allocator."""
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
    return next(
        (path for path in found if not set(" :") & set(str(path))), None
    )  # the loader splits its list there


def is_refused() -> bool:
    """Whether ``BITRANK_TCMALLOC=0`` is set."""
    return os.environ.get("BITRANK_TCMALLOC") == "0"


def heap_environment(limited: bool) -> dict[str, str]:
    """How a run's heap is kept. What the user preloads stays preloaded.

    glibc is told too, should the loader pass tcmalloc over: big temporaries would be mapped and unmapped at each step if its heap did not
    keep them; under a memory limit (``limited``) it must not. tcmalloc reuses what it keeps and needs no telling.
    """
    keep, trim = ("1048576", "16777216") if limited else ("268435456", "1073741824")
    heap = {"MALLOC_MMAP_THRESHOLD_": keep, "MALLOC_TRIM_THRESHOLD_": trim, "MALLOC_ARENA_MAX": "1"}
    if (library := find_tcmalloc()) is None:
        return heap
    preloaded = dict.fromkeys([*_preloaded(), str(library)])
    return {**heap, "LD_PRELOAD": ":".join(preloaded), "TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD": _SILENT}


def adopt() -> None:
    """Start this program once more, as the same process, with its memory from tcmalloc, unless it is there already or not to be had.

    For commands that hold a model themselves. Must come before anything is worth keeping. Whoever runs this program from within another
    (a notebook, ``runpy``) is left as it is, and where the loader takes the library away again it is tried once.
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
    """Where runs on this machine take their memory from, in a few words."""
    if (library := find_tcmalloc()) is not None:
        return f"tcmalloc ({library})"
    return "the C library, as BITRANK_TCMALLOC=0 says" if is_refused() else "the C library"


def _preloaded() -> list[str]:
    return os.environ.get("LD_PRELOAD", "").replace(":", " ").split()
