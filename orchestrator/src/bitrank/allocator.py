"""Who hands out a run's memory: gperftools' tcmalloc where Linux has it, else the C library.

PyTorch asks for blocks aligned to 64 bytes. glibc (2.36) cuts each from a larger one, and a block that was freed does not fit the next of
the same size: the heap grew to half again of what was alive at once, and by another amount in every run. tcmalloc has classes of
sizes, all of them aligned. The numbers of a run do not depend on it.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

_NAMES = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4")
_SILENT = str(2**62)  # bytes of a block of which tcmalloc says on stderr that it is large


def find_tcmalloc() -> Path | None:
    """The library of tcmalloc on this Linux, this Python's own folders first; None where there is none, or ``BITRANK_TCMALLOC=0``."""
    if platform.system() != "Linux" or os.environ.get("BITRANK_TCMALLOC") == "0":
        return None
    system = (f"/usr/lib/{platform.machine()}-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")
    folders = [Path(sys.prefix) / "lib", Path(sys.base_prefix) / "lib", *map(Path, system)]
    return next((folder / name for folder in folders for name in _NAMES if (folder / name).exists()), None)


def heap_environment(limited: bool) -> dict[str, str]:
    """How a run's heap is kept. Big temporaries would be mapped and unmapped at each step if glibc's heap did not keep them; under a
    memory limit (``limited``) it must not. What the user preloads stays preloaded."""
    if (library := find_tcmalloc()) is not None:
        preloaded = [*os.environ.get("LD_PRELOAD", "").replace(":", " ").split(), str(library)]
        return {"LD_PRELOAD": ":".join(dict.fromkeys(preloaded)), "TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD": _SILENT}
    keep, trim = ("1048576", "16777216") if limited else ("268435456", "1073741824")
    return {"MALLOC_MMAP_THRESHOLD_": keep, "MALLOC_TRIM_THRESHOLD_": trim, "MALLOC_ARENA_MAX": "1"}


def tcmalloc_status() -> str:
    """One sentence for ``bitrank doctor``."""
    if (library := find_tcmalloc()) is not None:
        return f"runs take their memory from tcmalloc ({library})"
    if os.environ.get("BITRANK_TCMALLOC") == "0":
        return "runs take their memory from the C library, as BITRANK_TCMALLOC=0 says"
    return "runs take their memory from the C library"
