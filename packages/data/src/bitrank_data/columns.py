"""The kind of a user's file by its columns, or an error that names the columns of every kind."""

from __future__ import annotations

from collections.abc import Sequence

from bitrank_data.errors import DataError
from bitrank_data.kinds import DATA_KINDS
from bitrank_data.layouts import TARGET, TEXT, Layout, Naming
from bitrank_data.rows import quoted, shown

# Common names of label columns. A file with one of them and no 'label' is not plain text for language
# modelling.
_LIKE_LABEL = {
    "label", "labels", "class", "classes", "target", "targets", "category", "categories", "sentiment", "y",
}  # fmt: skip


def known_columns(naming: Naming) -> set[str]:
    """Names of columns of all layouts, and those that the user gives."""
    layouts = [layout for kind in DATA_KINDS.values() for layout in kind.layouts]
    names = {column for layout in layouts for column in (*layout.columns.values(), *layout.optional.values())}
    return names | set(naming.columns)


def layout_of(columns: Sequence[str], naming: Naming, name: str = "the file") -> tuple[str, Layout]:
    """Kind and layout of a file: of those whose columns it has, the one with the most.

    Ties go to the later entry of the registry. Raises :class:`DataError` if none fits, or a used column
    occurs twice, or a column looks like a label that has another name.
    """
    fitting: list[tuple[int, int, str, Layout]] = []
    for kind, entry in DATA_KINDS.items():
        for layout in entry.layouts:
            named = None if _may_be_label(layout, naming) else naming.apply(layout)
            if named is not None and set(named.columns.values()) <= set(columns):
                fitting.append((len(named.present(columns)), len(fitting), kind, named))
    if not fitting:
        raise DataError(_no_layout(name, columns, naming))
    _, _, kind, chosen = max(fitting, key=lambda fit: fit[:2])
    twice = [column for column in chosen.present(columns).values() if columns.count(column) > 1]
    if twice:
        raise DataError(
            f"{name} has two columns {quoted(twice[0])} ({_found(columns)}); rename or remove one"
        )
    _refuse_like_label(name, columns, chosen)
    return kind, chosen


def _may_be_label(layout: Layout, naming: Naming) -> bool:
    """Whether the target of ``layout`` is called as labels are, and is not beside its usual source.

    A text that the user names is labelled by such a column more often than rewritten to it.
    """
    renamed = naming.text not in {(), (layout.columns.get(TEXT),)}
    return renamed and layout.columns.get(TARGET) in _LIKE_LABEL


def _refuse_like_label(name: str, columns: Sequence[str], layout: Layout) -> None:
    near = [column for column in columns if column.strip().casefold() in _LIKE_LABEL]
    if near and set(layout.columns) == {TEXT} and layout.columns[TEXT] not in near:
        like = quoted(near[0])
        rewriting = "; for sequence-to-sequence call the text 'source'" if near[0] == TARGET else ""
        raise DataError(
            f"{name} has a column {like} but none called 'label'; {_found(columns)}. For classification "
            f"rename {like} to 'label' or name it with --label-column; for language modelling remove it"
            f"{rewriting}"
        )


def _no_layout(name: str, columns: Sequence[str], naming: Naming) -> str:
    if absent := [column for column in naming.columns if column not in columns]:
        remedy = "give the name of one of its columns"
        return f"{name} has no column {quoted(absent[0])}, which was named; {_found(columns)}; {remedy}"
    if naming.label is not None:
        remedy = "name its text with --text-column"
        return f"{name} has a label but no column 'text'; {_found(columns)}; {remedy}"
    return f"{name} has no column 'text'; {_found(columns)}. Expected {_forms()}; {_remedy(name, columns)}"


def _forms() -> str:
    """Columns of every kind: ``text + label (classification), …``."""
    forms = []
    for kind, entry in DATA_KINDS.items():
        if entry.layouts:
            several = " or ".join(" + ".join(layout.columns.values()) for layout in entry.layouts)
            forms.append(f"{several} ({kind})")
    return "; ".join(forms)


def _remedy(name: str, columns: Sequence[str]) -> str:
    if near := [column for column in columns if column.strip().casefold() == TEXT]:
        return f"rename {quoted(near[0])} to 'text'"
    rename = "rename the column that holds the text, or name it with --text-column"
    if name.lower().endswith((".csv", ".tsv")):
        return f"{rename}, or add a header line if the file has none"
    return rename


def _found(columns: Sequence[str]) -> str:
    return f"found {shown(list(columns))}" if columns else "found none"
