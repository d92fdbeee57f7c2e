"""``reference/spec.md``: every field of a run's spec, generated from the dataclass.

The meaning of a field comes from the metadata of its annotation (``About`` and limits, see
``bitrank.spec.fields``) or of its dataclass field (``about``, ``help`` or ``doc``; ``unit``; ``check`` or
``choices``), else from the comment after it or the comment lines above it in the source, else it is empty.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Collection, Mapping
from typing import Any

from cells import table
from find import find

_ABOUT = ("about", "help", "doc", "comment", "meaning")
_LIMITS = ("check", "choices", "range", "limits")


def spec_page() -> str:
    """The page as Markdown."""
    spec = find("bitrank.spec.run_spec:RunSpec")
    settable = find("bitrank.spec.make_spec:SETTABLE")
    profiles = find("bitrank.spec.profiles:PROFILES")
    lines = [
        "# Run spec",
        "",
        "A spec holds everything that decides the numbers of one run. Its id (`spec_id`) is the hash of all",
        "fields. `--set KEY=VALUE` sets a field marked *settable*; other fields have their own options or",
        "follow from them. This page is generated from `RunSpec` (`make reference` renews it).",
        "",
        *_prose(inspect.getdoc(spec) or ""),
        "",
    ]
    return "\n".join([*lines, *field_table(spec, settable), *_profiles(profiles), ""])


def field_table(spec: type, settable: Collection[str]) -> list[str]:
    """A table with a row for each field of the dataclass ``spec``; those named in ``settable`` are marked."""
    comments, types = _comments(inspect.getsource(spec)), typing.get_type_hints(spec)
    annotated = typing.get_type_hints(spec, include_extras=True)
    head, rows = ("field", "type", "default", "settable", "meaning"), []
    for field in dataclasses.fields(spec):
        kind, may_set = _type(types[field.name]), "yes" if field.name in settable else ""
        metadata = {**_annotated_metadata(annotated[field.name]), **field.metadata}
        meaning = _meaning(metadata, comments.get(field.name, ""))
        rows.append((f"`{field.name}`", f"`{kind}`", _default(field), may_set, meaning))
    if not any(row[-1] for row in rows):  # leave out an empty column
        head, rows = head[:-1], [row[:-1] for row in rows]
    return table(head, rows)


def _prose(docstring: str) -> list[str]:
    """The docstring in Markdown: Sphinx roles and double backquotes as code."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", docstring)
    return text.replace("``", "`").splitlines()


def _type(kind: Any) -> str:
    text = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
    text = re.sub(r"Optional\[(.+)\]", r"\1 | None", text)
    return text.replace(" | ", " or ")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    return "required" if field.default_factory is dataclasses.MISSING else f"`{field.default_factory()!r}`"


def _annotated_metadata(hint: Any) -> dict[str, Any]:
    """The metadata of an annotation in the form that dataclass fields have."""
    about_type, first, limits_of = (
        find(f"bitrank.spec.fields:{name}") for name in ("About", "first", "limits_of")
    )
    about = first(hint, about_type)
    if about is None:
        return {}
    return {
        "about": f"{about.text[:1].upper()}{about.text[1:]}.",
        "unit": about.unit,
        "check": limits_of(hint),
    }


def _meaning(metadata: Mapping[str, Any], comment: str) -> str:
    about = next((str(metadata[key]) for key in _ABOUT if metadata.get(key)), comment)
    unit = f" Unit: {metadata['unit']}." if metadata.get("unit") else ""
    limits = next((metadata[key] for key in _LIMITS if metadata.get(key)), "")
    shown = limits.__doc__ if callable(limits) else limits
    if isinstance(shown, (tuple, list)):
        shown = ", ".join(f"`{item}`" for item in shown)
    return about + unit + (f" Allowed: {shown}." if shown else "")


def _comments(source: str) -> dict[str, str]:
    """Field → the comment lines above it and the comment after it."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in source.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            above.append(stripped.lstrip("# "))
            continue
        if match := re.match(r"    (\w+): [^#]*(?:#\s*(.*))?$", line):
            found[match[1]] = " ".join([*above, match[2] or ""]).strip()
        above = []
    return found


def _profiles(profiles: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Profiles",
        "",
        "A profile names tasks and seeds, and for each kind of task the fields that differ from defaults.",
        "",
    ]
    for profile in profiles.values():
        seeds = ", ".join(str(seed) for seed in profile.seeds)
        tasks = ", ".join(profile.tasks)
        lines += [f"### {profile.name}", "", f"{profile.about}. Tasks: {tasks}. Seeds: {seeds}.", ""]
        kinds = profile.by_kind
        keys = list(dict.fromkeys(key for fields in kinds.values() for key in fields))
        rows = []
        for key in keys:
            values = [f"`{fields[key]}`" if key in fields else "" for fields in kinds.values()]
            rows.append((f"`{key}`", *values))
        lines += table(("field", *kinds), rows)
    return lines
