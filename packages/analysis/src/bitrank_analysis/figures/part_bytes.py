"""Bytes of a plan by part of the model."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import pandas as pd

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.figures.theme import COLUMN, Figure, label_extent
from bitrank_analysis.matrix_names import module_order, with_place

_KINDS = {"weights": "#0072B2", "adapters": "#E69F00", "fixed": "#7a7a7a"}
_FIXED = "norms, biases"


def part_bytes(weights: Mapping[str, int], adapters: Mapping[str, int], fixed: int) -> Figure:
    """Bytes of the kinds of matrices: weights and adapters, summed over the layers.

    ``weights`` and ``adapters`` are bytes by matrix; ``fixed`` are the bytes that no plan changes (norms,
    biases, buffers). Raises :class:`AnalysisError` without a matrix.
    """
    if not weights:
        raise AnalysisError("expected the bytes of at least one matrix, got none")
    rows = [(name, "weights", size) for name, size in weights.items()]
    rows += [(name, "adapters", size) for name, size in adapters.items() if size]
    frame = with_place(pd.DataFrame(rows, columns=["matrix", "kind", "bytes"]))
    parts = frame.groupby(["module", "kind"], as_index=False)["bytes"].sum()
    order = [*module_order(parts["module"]), _FIXED]
    if fixed:
        parts.loc[len(parts)] = [_FIXED, "fixed", fixed]
    parts = parts.assign(mib=parts["bytes"] / 2**20)
    present = [kind for kind in _KINDS if kind in set(parts["kind"])]
    scale = alt.Scale(domain=present, range=[_KINDS[kind] for kind in present])
    chart = (
        alt.Chart(parts)
        .mark_bar()
        .encode(
            x=alt.X("mib:Q", title="MiB", axis=alt.Axis(tickCount=5)),
            y=alt.Y("module:N", sort=order, title=None, axis=alt.Axis(minExtent=label_extent(order))),
            color=alt.Color("kind:N", scale=scale, legend=alt.Legend(title=None, orient="bottom")),
            order=alt.Order("kind:N", sort="descending"),
        )
        .properties(width=COLUMN, height=alt.Step(20))
    )
    return Figure("bytes", _title(parts), chart, "Sums over all layers; scales count as weights.")


def _title(parts: pd.DataFrame) -> str:
    sums, whole = parts.groupby("module")["bytes"].sum().sort_values(), parts["bytes"].sum()
    share = 100 * sums.iloc[-1] / whole
    adapters = parts.loc[parts["kind"] == "adapters", "bytes"].sum()
    return f"{sums.index[-1]} takes {share:.0f} % of all bytes; adapters take {100 * adapters / whole:.0f} %"
