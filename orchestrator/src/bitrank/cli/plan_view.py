"""A plan on the terminal: maps of bits and rank by block and matrix, and predicted figures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from bitrank_planner import GAP, Item, Plan
from bitrank_quant import parse_format
from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

_BLOCKS_PER_MAP = 30
_PALE, _DEEP = (222, 235, 247), (8, 69, 148)  # ends of the blue colour scale


def plan_view(plan: Plan, items: Sequence[Item], predicted: Mapping[str, str]) -> RenderableType:
    """Maps, a summary of formats and ranks, and the ``predicted`` figures by label."""
    bits = {name: parse_format(fmt).bits for name, fmt in plan.precision.items()}
    inside = [item for item in items if item.layer is not None and item.role != "embedding"]
    outside = [item for item in items if item not in inside]
    return Group(
        *_maps("bits by block and matrix", inside, bits),
        Text(),
        *_maps(
            "rank by block and matrix", inside, {item.name: plan.ranks.get(item.name, 0) for item in inside}
        ),
        Text(),
        _outside(outside, plan),
        Text(),
        _predicted(plan, predicted),
    )


def proven(plan: Plan, seconds: float) -> dict[str, str]:
    """The proven bound on the added loss as a row; empty if the planner proves none."""
    if plan.gap is None or plan.bound is None:
        return {}
    if plan.gap <= GAP:
        return {"proven": f"optimal among plans with these options (relative gap at most {GAP:.0e})"}
    return {
        "proven": f"no plan with these options adds less than {plan.bound:.4f} nats: at most "
        f"{100 * plan.gap:.2g} % to gain; the search stopped at its limit of {seconds:g} seconds"
    }


def plan_lines(plan: Plan, items: Sequence[Item]) -> Table:
    """Every matrix with its format and rank."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("matrix", "shape", "format", "rank", "bytes", "nats"):
        table.add_column(head, justify="left" if head in {"matrix", "format"} else "right", no_wrap=True)
    for item, choice in zip(items, plan.choices, strict=True):
        option = item.options[choice]
        shape = "×".join(map(str, item.shape))
        table.add_row(
            item.name,
            shape,
            option.format,
            str(option.rank or "–"),
            f"{option.nbytes:,}",
            f"{option.cost:.5f}",
        )
    return table


def _maps(title: str, items: Sequence[Item], values: Mapping[str, int]) -> Iterator[Table]:
    """One map for every ``_BLOCKS_PER_MAP`` blocks; deep models have several."""
    layers = sorted({item.layer for item in items if item.layer is not None})
    for start in range(0, len(layers), _BLOCKS_PER_MAP):
        yield _map(title if not start else "", items, values, layers[start : start + _BLOCKS_PER_MAP])


def _map(title: str, items: Sequence[Item], values: Mapping[str, int], layers: Sequence[int]) -> Table:
    """A table with one row per kind of matrix and one column per block; colours show the values."""
    kind_of = _kinds(items)
    kinds = dict.fromkeys(kind_of.values())
    cells = {(kind_of[item.name], item.layer): values[item.name] for item in items}
    low, high = min(cells.values(), default=0), max(cells.values(), default=1)
    width = max(len(str(value)) for value in (high, *layers))
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=0,
        show_header=True,
    )
    table.add_column("", no_wrap=True, style="dim")
    for layer in layers:
        table.add_column(f" {layer:>{width}}", no_wrap=True, header_style="dim")
    for kind in kinds:
        row = [cells.get((kind, layer)) for layer in layers]
        table.add_row(
            f"{kind}  ", *(Text("") if value is None else _cell(value, low, high, width) for value in row)
        )
    return table


def _cell(value: int, low: int, high: int, width: int) -> Text:
    share = (value - low) / (high - low) if high > low else 0.0
    colour = tuple(round(pale + (deep - pale) * share) for pale, deep in zip(_PALE, _DEEP, strict=True))
    ink = "white" if share > 0.5 else "black"
    return Text(
        f" {value:>{width}}", style=Style(color=ink, bgcolor=f"rgb({colour[0]},{colour[1]},{colour[2]})")
    )


def _kinds(items: Sequence[Item]) -> dict[str, str]:
    """A label for each matrix by name, the same in every block and different within one.

    It is the part of the name after the last number, or else after the block number, or the whole name: two
    stacks have blocks of one number, and a block has several experts.
    """
    places = {item.name: item.layer for item in items}
    for label in (_after_last_number, _after_first_number, _without_block):
        labels = {name: label(name) for name in places}
        if len({(labels[name], layer) for name, layer in places.items()}) == len(places):
            return labels
    return {name: name for name in places}


def _after_last_number(name: str) -> str:
    return re.split(r"\.\d+\.", name)[-1]


def _after_first_number(name: str) -> str:
    return re.split(r"\.\d+\.", name, maxsplit=1)[-1]


def _without_block(name: str) -> str:
    return re.sub(r"\.\d+\.", ".", name, count=1)


def _outside(items: Sequence[Item], plan: Plan) -> Table:
    table = Table(
        title="outside the blocks",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        show_header=False,
    )
    for item in items:
        table.add_row(item.name, plan.precision[item.name])
    return table


def _predicted(plan: Plan, predicted: Mapping[str, str]) -> Table:
    table = Table(
        title="predicted",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        show_header=False,
    )
    formats = Counter(plan.precision.values())
    table.add_row("formats", ", ".join(f"{count} × {fmt}" for fmt, count in formats.most_common()))
    ranks = Counter(plan.ranks.values())
    table.add_row("ranks", ", ".join(f"{count} × {rank}" for rank, count in sorted(ranks.items())))
    for name, value in predicted.items():
        table.add_row(name, value)
    return table
