"""Validation of specs, settings and plan files by pydantic; each error becomes one sentence.

A dataclass with metadata on its fields (:mod:`bitrank.spec.fields`) becomes a strict pydantic model: types
are not converted, unknown keys are rejected, numbers must be finite. Text from the command line is parsed
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

# Descriptions by Python type, by the prefix of pydantic's error type, and the bound of each error type.
_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_ERROR_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "dict": "an object",
    "list": "a list",
}
_BOUNDS: dict[str, type] = {
    "greater_than_equal": Ge,
    "greater_than": Gt,
    "less_than_equal": Le,
    "less_than": Lt,
}
_SHOWN = 120  # characters of a key in a message


def validate(kind: type, values: Mapping[str, Any], key_noun: str = "key") -> None:
    """Raise :class:`UserError` for the first of ``values`` that the field of ``kind`` does not accept.

    ``key_noun`` names an unknown key in the message.
    """
    try:
        _model(kind).model_validate(dict(values))
    except ValidationError as error:
        raise _user_error(kind, error, key_noun) from None


def parse_text(kind: type, name: str, text: str) -> Any:
    """Parse ``text`` as a value of field ``name`` of ``kind``. Raises :class:`UserError`."""
    hint = hints_of(kind)[name]
    config = ConfigDict(allow_inf_nan=False)
    adapter: TypeAdapter[Any] = TypeAdapter(hint, config=config)
    try:
        return adapter.validate_strings(text)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=True)
        raise _field_error(name, hint, details[0]) from None


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


def _user_error(kind: type, error: ValidationError, key_noun: str) -> UserError:
    details = error.errors(include_url=False)[0]
    keys = [str(part) for part in details["loc"] if part != "[key]"]
    name = keys[0]
    if details["type"] == "extra_forbidden":
        return unknown(key_noun, name, hints_of(kind))
    if details["type"] == "missing" and len(keys) == 1:
        return UserError(f"{name} is missing")
    return _field_error(".".join(keys), hints_of(kind)[name], details)


def _field_error(name: str, hint: Any, details: Any) -> UserError:
    value, problem = details["input"], details["type"]
    choice = first(hint, OneOf)
    is_text = isinstance(value, str)
    if choice is not None and (is_text or problem == "value_error"):
        return unknown(name, value, choice.known())
    return UserError(f"{_cut(name)} must be {_expected(hint, details)}, got {_shown(value, problem)}")


def _shown(value: object, problem: str) -> str:
    """Format ``value`` for a message; a number from the command line, which is text, without quotes."""
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
    error_type = _ERROR_TYPES.get(problem.split("_")[0])
    return error_type or _TYPE_NAMES.get(base_of(hint), details["msg"])


def _cut(name: str) -> str:
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
