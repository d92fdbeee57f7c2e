"""bitrank: how many bits and how much LoRA rank each weight matrix gets; the study that compares the choices.

From Python: :func:`plan`, :func:`apply`, :func:`attach`, :func:`load_plan`, :func:`save_plan`,
:func:`open_store` (see :mod:`bitrank.api`). They are imported when first used: torch takes seconds to load,
and the command line needs it late.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitrank.api import apply, attach, load_plan, open_store, plan, save_plan
    from bitrank.errors import UserError

__version__ = "0.1.0"
__all__ = ["UserError", "apply", "attach", "load_plan", "open_store", "plan", "save_plan"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'bitrank' has no attribute {name!r}; it has {', '.join(__all__)}")
    home = "bitrank.errors" if name == "UserError" else "bitrank.api"
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
