"""Validation of specs, settings and plan files by pydantic, with every refusal as one sentence.

A dataclass whose fields carry metadata (:mod:`bitrank.spec.fields`) becomes a strict pydantic model: types
are not converted, unknown keys are refused, numbers must be finite. Text from the command line is converted
by the same annotations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model

from bitrank.errors import UserError, shortened, unknown
from bitrank.spec.fields import OneOf, base_of, first, hints_of, limit_text

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_TYPES = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "string": "text",
    "dict": "an object", "list": "a list",
}  # fmt: skip
_BOUNDS: dict[str, type] = {
    "greater_than_equal": Ge, "greater_than": Gt, "less_than_equal": Le, "less_than": Lt,
}  # fmt: skip
_SHOWN = 120  # characters of a key


def validate(kind: type, values: Mapping[str, Any], what: str = "key") -> None:
    """Raise :class:`UserError` for the first of ``values`` that the field of ``kind`` does not accept.

    ``what`` is the word for a key that ``kind`` does not have.
    """
    try:
        _model(kind).model_validate(dict(values))
    except ValidationError as error:
        raise _refusal(kind, error, what) from None


def parse_text(kind: type, name: str, text: str) -> Any:
    """``text`` as a value of field ``name`` of ``kind``. Raises :class:`UserError`."""
    hint = hints_of(kind)[name]
    config = ConfigDict(allow_inf_nan=False)
    adapter: TypeAdapter[Any] = TypeAdapter(hint, config=config)
    try:
        return adapter.validate_strings(text)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=True)
        raise _sentence(name, hint, details[0]) from None


@cache
def _model(kind: type) -> type[BaseModel]:
    config = ConfigDict(
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        arbitrary_types_allowed=True,
    )
    members: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        members[field.name] = (hints_of(kind)[field.name], ... if required else None)
    return create_model(kind.__name__, __config__=config, **members)


def _refusal(kind: type, error: ValidationError, what: str) -> UserError:
    # Without the input: it may be a number with too many digits to print.
    details = error.errors(include_url=False)[0]
    place = [str(part) for part in details["loc"] if part != "[key]"]
    name = place[0]
    if details["type"] == "extra_forbidden":
        return unknown(what, name, hints_of(kind))
    if details["type"] == "missing" and len(place) == 1:
        return UserError(f"{name} is missing")
    return _sentence(".".join(place), hints_of(kind)[name], details)


def _sentence(name: str, hint: Any, details: Any) -> UserError:
    value, problem = details["input"], details["type"]
    choice = first(hint, OneOf)
    is_text = isinstance(value, str)
    if choice is not None and (is_text or problem == "value_error"):
        return unknown(name, value, choice.known())
    return UserError(f"{_cut(name)} must be {_expected(hint, details)}, got {_shown(value, problem)}")


def _shown(value: object, problem: str) -> str:
    """``value`` for a message; a number is shown as one where the command line gave it as text."""
    is_number = problem in _BOUNDS and isinstance(value, str)
    return str(value)[:_SHOWN] if is_number else shortened(value)


def _expected(hint: Any, details: Any) -> str:
    problem, context = details["type"], details.get("ctx", {})
    if problem in _BOUNDS:
        (bound,) = context.values()
        return limit_text(_BOUNDS[problem](bound))
    if problem == "string_too_short":
        return "text of at least one character"
    if problem in {"string_too_long", "int_parsing_size"}:
        limit = context.get("max_length")
        return f"text of at most {limit} characters" if limit else "a whole number of fewer digits"
    if problem in {"string_unicode", "value_error"}:
        return "text without NUL characters and surrogates"
    if problem == "finite_number":
        return "a finite number"
    if problem in {"too_short", "too_long"}:
        return f"of another length: {details['msg']}"
    word = _TYPES.get(problem.split("_")[0])
    return word or _WORDS.get(base_of(hint), details["msg"])


def _cut(name: str) -> str:
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
