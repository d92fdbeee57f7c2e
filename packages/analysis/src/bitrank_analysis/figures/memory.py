"""Peak memory of training, split into known parts and the rest."""

from __future__ import annotations

import altair as alt
import pandas as pd

from bitrank_analysis.evidence import Evidence
from bitrank_analysis.figures.theme import COLUMN, Figure

# Colours of Okabe and Ito, ordered from unavoidable memory to the unexplained rest.
_PARTS = {
    "imports": "#7a7a7a",
    "base weights": "#0072B2",
    "adapters": "#E69F00",
    "optimizer state": "#D55E00",
    "the rest": "#9fd3ee",
}
_MIB = 2**20


def memory_parts(evidence: Evidence) -> pd.DataFrame:
    """MiB per arm (mean over seeds) and part; columns config, part, mib.

    Imports are measured. Base weights are the stored bytes. Adapters are fp32 in memory; AdamW keeps two fp32
    numbers per trainable parameter. The rest is the measured peak minus these parts: gradients, activations
    and buffers of libraries.
    """
    columns = ["peak_mib", "import_mib", "model_mib", "adapter_params"]
    means = evidence.measured(*columns).groupby("config")[columns].mean()
    parts = pd.DataFrame(
        {
            "imports": means["import_mib"],
            "base weights": means["model_mib"],
            "adapters": means["adapter_params"] * 4 / _MIB,
            "optimizer state": means["adapter_params"] * 8 / _MIB,
        }
    )
    parts["the rest"] = means["peak_mib"] - parts.sum(axis=1)
    return parts.reset_index().melt("config", var_name="part", value_name="mib")


def memory(evidence: Evidence) -> Figure:
    """Stacked bars of peak memory, one per arm."""
    parts = memory_parts(evidence)
    peaks = parts.groupby("config", as_index=False)["mib"].sum()
    order = {part: at for at, part in enumerate(_PARTS)}
    x = alt.X(
        "mib:Q",
        title="Peak memory, MiB (lower is better)",
        axis=alt.Axis(tickCount=4, labelOverlap=True),
        scale=alt.Scale(domainMax=float(peaks["mib"].max()) * 1.16),
    )
    y = alt.Y("config:N", sort=evidence.configs, title=None)
    bars = (
        alt.Chart(parts.assign(order=parts["part"].map(order), mib=parts["mib"].clip(lower=0)))
        .mark_bar(height=15)
        .encode(
            x=x,
            y=y,
            color=alt.Color("part:N", scale=alt.Scale(domain=list(_PARTS), range=list(_PARTS.values())),
                            legend=alt.Legend(title=None, orient="bottom", columns=3)),
            order="order:Q",
            tooltip=["config:N", "part:N", alt.Tooltip("mib:Q", format=",.1f")],
        )
    )  # fmt: skip
    totals = (
        alt.Chart(peaks)
        .mark_text(align="left", dx=5)
        .encode(x="mib:Q", y=y, text=alt.Text("mib:Q", format=",.0f"))
    )
    chart = alt.layer(bars, totals).properties(width=COLUMN, height=30 * len(peaks))
    over = parts[(parts["part"] == "the rest") & (parts["mib"] < 0)]["config"]
    doubt = (
        f" In {', '.join(over)} the known parts exceed the measured peak, so some of them were never in "
        "memory together."
        if len(over)
        else ""
    )
    note = (
        f"{evidence.task}: imports measured, base weights as stored,"
        f" optimizer state 2 × fp32 per trainable parameter.{doubt}{evidence.left_out(peaks)}"
    )
    return Figure("memory", _title(peaks, parts), chart, note)


def _title(peaks: pd.DataFrame, parts: pd.DataFrame) -> str:
    ranked = peaks.sort_values("mib")
    low, high = ranked.iloc[0], ranked.iloc[-1]
    total = parts.groupby("part")["mib"].sum()
    trained = total[["base weights", "adapters", "optimizer state"]].sum() / total.sum()
    percent = f"{100 * trained:.0f}" if trained >= 0.01 else "less than 1"
    share = f"weights, adapters and optimizer are {percent} % of the peak"
    if len(peaks) == 1:
        return f"{low['config']} peaks at {low['mib']:,.0f} MiB; {share}"
    if high["mib"] / low["mib"] < 1.02:
        return f"Peaks lie within 2 % of {low['mib']:,.0f} MiB; {share}"
    return (
        f"{low['config']} peaks lowest ({low['mib']:,.0f} MiB), {high['config']} highest "
        f"({high['mib']:,.0f}); {share}"
    )
