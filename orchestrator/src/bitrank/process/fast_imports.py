"""The libraries of a run, imported in two thirds of the time.

Two things make up the rest. Python looks for garbage again and again while hundreds of thousands of objects come to stay. And
bitsandbytes asks torch to compile four functions while it is imported, for which alone torch reads its whole compiler.
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
    """Inside, what is imported is not searched for garbage, then or later, and bitsandbytes is there; its functions are compiled when
    they are first called. Where the libraries are there already nothing is left to gain, and nothing is done."""
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
    """Leave out what libraries tell each other's authors, and nobody at the terminal can act on: PEFT asks transformers by old names, and
    bitsandbytes says at import that an optional package of kernels is absent."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"peft\..*")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _import_bitsandbytes() -> None:
    import torch

    compile_now = torch.compile
    torch.compile = late(compile_now)
    try:
        with contextlib.suppress(Exception):  # absent or broken: who needs it meets the error himself
            import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compile_now


def late(compile_now: Compile) -> Compile:
    """``torch.compile``, as a function and as a decorator, that compiles at the first call."""

    def asked(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return functools.partial(asked, **options)
        compiled: list[Callable[..., Any]] = []

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            if not compiled:
                compiled.append(compile_now(function, **options))
            return compiled[0](*args, **kwargs)

        return called

    return asked
