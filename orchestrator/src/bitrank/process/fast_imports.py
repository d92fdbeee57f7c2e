"""Import a run's libraries in two thirds of the usual time.

Two causes account for the remaining third. The garbage collector runs again and again while imports create
hundreds of thousands of objects that stay alive. And bitsandbytes compiles four functions at import, for
which torch loads its whole compiler.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Compile = Callable[..., Any]


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import bitsandbytes, and disable the garbage collector inside the block.

    Objects that exist at the end of the block are also excluded from later collections. bitsandbytes'
    functions are compiled at their first call. Does nothing if bitsandbytes is imported already.
    """
    if "bitsandbytes" in sys.modules:
        yield
        return
    searching = gc.isenabled()
    gc.disable()
    try:
        _import_bitsandbytes()
        yield
    finally:
        if searching:
            gc.freeze()
            gc.enable()


def quiet_libraries() -> None:
    """Silence library messages that the user cannot act on.

    PEFT uses deprecated names of transformers, and bitsandbytes reports at import that an optional package of
    kernels is missing.
    """
    warnings.filterwarnings("ignore", category=UserWarning, module=r"peft\..*")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _import_bitsandbytes() -> None:
    import torch

    compile_now = torch.compile
    torch.compile = late(compile_now)
    try:
        with contextlib.suppress(Exception):  # absent or broken: its first use raises the error
            import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compile_now


def late(compile_now: Compile) -> Compile:
    """Return a ``torch.compile``, usable as function and as decorator, that compiles at the first call."""

    def compile_later(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return functools.partial(compile_later, **options)
        compiled: list[Callable[..., Any]] = []

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            if not compiled:
                compiled.append(compile_now(function, **options))
            return compiled[0](*args, **kwargs)

        return called

    return compile_later
