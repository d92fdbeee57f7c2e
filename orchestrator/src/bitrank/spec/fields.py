"""Field types with meaning and limits as metadata, for validation, help texts and the reference page.

Limits are the types of ``annotated_types``, which pydantic supports. Only :mod:`bitrank.spec.validation`
imports pydantic: a run's own process validates nothing, and pydantic would increase its measured memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class About:
    """The meaning of a field, and its unit if it has one."""

    text: str
    unit: str = ""


@dataclass(frozen=True)
class OneOf:
    """The value must be one of ``names()``, which is called only for a value that is not in ``always``."""

    names: Callable[[], Iterable[str]]
    always: tuple[str, ...] = ()

    def known(self) -> list[str]:
        """All allowed values."""
        return list(dict.fromkeys([*self.always, *self.names()]))

    def check(self, value: str) -> str:
        """``value`` itself. Raises :class:`ValueError` when it is not allowed."""
        if value not in self.always and value not in self.names():
            raise ValueError("not one of the known names")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self.check, handler(source))


def one_of(names: Iterable[str]) -> OneOf:
    """The value must be one of ``names``."""
    return OneOf(lambda: names)


@dataclass(frozen=True)
class NoNul:
    """Text without NUL characters, which no path, database or process accepts."""

    def check(self, value: str) -> str:
        """``value`` itself. Raises :class:`ValueError` when it has a NUL character."""
        if "\0" in value:
            raise ValueError("has a NUL character")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self.check, handler(source))


@dataclass(frozen=True)
class ByteAmount:
    """On the command line the number may have a unit, such as ``1.5GiB``."""


# Limits well above practical values: larger ones overflow in torch, NumPy or the operating system.
_LARGEST_FLOAT = 1e38  # the optimizer computes in fp32, whose largest number is 3.4e38
TEXT_LENGTH = 4096  # the longest path that Linux accepts

Text = Annotated[str, MinLen(1), MaxLen(TEXT_LENGTH), NoNul()]
Count = Annotated[int, Ge(1), Le(10**9)]
Sequences = Annotated[int, Ge(1), Le(2**20)]
Length = Annotated[int, Ge(1), Le(2**24)]
Rank = Annotated[int, Ge(1), Le(2**16)]
PlannedRank = Annotated[int, Ge(0), Le(2**16)]  # 0: no adapter
Workers = Annotated[int, Ge(1), Le(1024)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
Bytes = Annotated[int, Ge(1), Le(2**60), ByteAmount()]
Positive = Annotated[float, Gt(0), Le(_LARGEST_FLOAT)]
# A larger rate is a typing error: it would be recorded as a finding, "diverged".
Rate = Annotated[float, Gt(0), Le(1.0)]
NotNegative = Annotated[float, Ge(0), Le(_LARGEST_FLOAT)]
Fraction = Annotated[float, Ge(0), Lt(1)]


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """Annotations, with metadata, of all fields of the dataclass ``kind``."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def metadata_of(hint: Any) -> list[Any]:
    """All metadata in an annotation, ``Annotated`` and unions included, outermost first."""
    own = list(getattr(hint, "__metadata__", ()))
    for part in get_args(hint):
        if part not in own:
            own += metadata_of(part)
    return own


def base_of(hint: Any) -> type:
    """The type of a value that is not None: ``int`` for ``Annotated[int, …] | None``."""
    if hasattr(hint, "__metadata__"):
        return base_of(hint.__origin__)
    parts = [part for part in get_args(hint) if part is not type(None)]
    is_union = type(None) in get_args(hint)
    if is_union and len(parts) == 1:
        return base_of(parts[0])
    return hint  # type: ignore[no-any-return]


def first(hint: Any, kind: type[_Kind]) -> _Kind | None:
    """The first metadata of ``kind`` in an annotation."""
    return next((one for one in metadata_of(hint) if isinstance(one, kind)), None)


def about_of(kind: type, name: str) -> About:
    """The meaning of field ``name`` of ``kind``."""
    return first(hints_of(kind)[name], About) or About("")


def limits_of(hint: Any) -> str:
    """The limits of an annotation as text, such as ``1 or more, at most 1024``; empty without limits."""
    choice = first(hint, OneOf)
    if choice is not None:
        return "one of " + ", ".join(choice.known())
    return ", ".join(text for one in metadata_of(hint) if (text := limit_text(one)))


def limit_text(limit: Any) -> str:
    """One limit as text; empty for other metadata."""
    if isinstance(limit, Ge):
        return f"{limit.ge} or more"
    if isinstance(limit, Gt):
        return f"above {limit.gt}"
    if isinstance(limit, Le):
        return f"at most {limit.le}"
    if isinstance(limit, Lt):
        return f"below {limit.lt}"
    return ""
