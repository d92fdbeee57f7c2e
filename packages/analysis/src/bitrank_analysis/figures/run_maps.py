"""The maps of one plan or run alone: bits and rank of every matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import vl_convert

from bitrank_analysis.figures.ranks import heat_map
from bitrank_analysis.figures.save import VEGA_LITE, spec
from bitrank_analysis.figures.theme import Figure
from bitrank_analysis.matrix_names import nominal_bits, with_place


def run_maps(name: str, formats: Mapping[str, str], ranks: Mapping[str, int]) -> dict[str, bytes]:
    """``bits.png`` and ``rank.png`` of the run ``name``, as PNG bytes.

    A map is left out if no matrix is in a numbered layer or all values are equal.
    """
    varying = {
        "bits": len({nominal_bits(text) for text in formats.values()}) > 1,
        "rank": len(set(ranks.values())) > 1,
    }
    return {
        f"{figure.name}.png": vl_convert.vegalite_to_png(spec(figure), vl_version=VEGA_LITE, scale=2)
        for figure in map_figures(name, formats, ranks)
        if varying[figure.name]
    }


def map_figures(name: str, formats: Mapping[str, str], ranks: Mapping[str, int]) -> list[Figure]:
    """The figures ``bits`` and ``rank`` of the run or plan ``name``.

    A map is left out if no matrix is in a numbered layer.
    """
    bits = {matrix: nominal_bits(text) for matrix, text in formats.items()}
    found = [
        _map(name, bits, [*formats, *ranks], "bits", "Bits of one stored weight"),
        _map(name, ranks, [*formats, *ranks], "rank", "LoRA rank"),
    ]
    return [figure for figure in found if figure is not None]


def _map(
    name: str, values: Mapping[str, int], matrices: Sequence[str], column: str, title: str
) -> Figure | None:
    frame = pd.DataFrame({"matrix": list(values), column: list(values.values())})
    if frame.empty:
        return None
    inside = with_place(frame, matrices).dropna(subset=["layer"])
    if inside.empty:
        return None
    cells = inside.assign(config=name).groupby(["config", "layer", "module"], as_index=False)[column].mean()
    return Figure(
        column, title, heat_map(cells, column, [name]), "Rows are layers from input (top) to output."
    )
