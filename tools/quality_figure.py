"""Draw the README's figure, quality against bytes, from the last paper build. Usage: quality_figure.py [OUT]

Reads ``paper/generated/tables/arms-<task>.csv``; run it after ``make paper`` has written new ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

import altair as alt
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "paper" / "generated" / "tables"
# Task → title of the vertical axis, factor for quality, whether low values are at the top.
PANELS = {
    "movie_sentences": ("accuracy on movie_sentences, %", 100.0, False),
    "wiki_articles": ("perplexity on wiki_articles (axis reversed)", 1.0, True),
}
# Labels that would collide: (task, config) → offset in pixels to the right and downwards.
SHIFTS = {
    ("movie_sentences", "Plan-Q4"): (-9, -6),
    ("wiki_articles", "Plan-Q4"): (9, -8),
    ("movie_sentences", "B-Q4"): (-9, 15),
    ("movie_sentences", "Joint-3"): (9, -8),
    ("movie_sentences", "Joint-1"): (9, 12),
    ("wiki_articles", "Joint-3"): (9, -6),
    ("wiki_articles", "B-Q4"): (-9, 4),
    ("wiki_articles", "Joint-2"): (-9, 4),
}


def panel(task: str) -> alt.LayerChart:
    """One task: a point and a 95 % interval for each config."""
    title, factor, reverse = PANELS[task]
    frame = pd.read_csv(TABLES / f"arms-{task}.csv")
    frame[["quality", "low", "high"]] *= factor
    same_size = frame["stored_mib"].round(1).duplicated()
    # Draw configs of one size side by side.
    frame.loc[same_size, "stored_mib"] += 0.012 * frame["stored_mib"].max()
    quality = alt.Y("quality:Q", title=title, scale=alt.Scale(zero=False, reverse=reverse))
    low = alt.Y("low:Q", title=title, scale=quality["scale"])
    base = alt.Chart(frame).encode(
        x=alt.X("stored_mib:Q", title="model and adapters, MiB", scale=alt.Scale(zero=True, nice=True)),
        color=alt.Color("config:N", title=None, legend=None, scale=alt.Scale(scheme="tableau10")),
    )
    layers: list[alt.Chart] = [
        base.mark_rule(strokeWidth=1.5).encode(y=low, y2="high:Q"),
        base.mark_point(filled=True, size=70).encode(y=quality, shape=alt.Shape("config:N", legend=None)),
    ]
    for row in frame.to_dict("records"):
        right, down = SHIFTS.get((task, row["config"]), (9, 4))
        side = "left" if right > 0 else "right"
        label = alt.Chart(pd.DataFrame([row])).mark_text(align=side, dx=right, dy=down, fontSize=11)
        layers.append(label.encode(x="stored_mib:Q", y=quality, text="config:N"))
    return alt.layer(*layers).properties(width=330, height=240)


def main(out: Path) -> int:
    """Write the figure to ``out``."""
    axis = alt.AxisConfig(titleFontWeight="normal", labelFontSize=11, titleFontSize=12)
    panels = alt.hconcat(*(panel(task) for task in PANELS), spacing=36)
    chart = panels.configure(background="white", font="sans-serif", axis=axis)
    chart.save(str(out))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "assets" / "quality-bytes.svg"))
