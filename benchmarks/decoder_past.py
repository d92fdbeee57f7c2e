"""Do weights that went through 4 bits once lose less in 4 bits than others? Error of each matrix by model.

    python benchmarks/decoder_past.py [--threads 1]

SmolLM2's weights come from a GGUF file in Q4_1 (groups of 32 with a 4-bit grid each). If rounding them to 4
bits again were easier than rounding other weights, every result on 4 bits would be too good. Compared are the
relative errors ‖W - q(W)‖ / ‖W‖ of the block matrices with those of Gaussian weights, with those of models in
true 32 bits, and with those of such a model after it went through Q4_1 as well. Writes
docs/results/decoder-past.md and its figure.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import altair as alt
import pandas as pd
import torch
from bitrank.models.locate import folder_of, quiet_transformers
from bitrank.planning.prior import relative_error
from bitrank_quant import block_matrices, parse_format
from harness import table
from torch import Tensor
from transformers import AutoModel

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "decoder-past.md"
PAST = "int4-g32"  # GGUF's Q4_1: a 4-bit grid with scale and minimum for 32 weights
FORMATS = ("nf4", "int4-g64")  # with a verdict
# Other formats that plans choose from, and the control: rounding to the grid that the weights are on must be
# nearly free, or the past is not Q4_1.
OTHERS = ("int3-g64", "int5-g64", "int6-g64", PAST)
MARGIN = 0.05
SUBJECT = "SmolLM2"
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Weights:
    """One row of the table: the block matrices of an embedded ``model``, changed by ``change`` before."""

    name: str
    model: str
    change: Change | None = None


def rounded(weight_OI: Tensor, text: str) -> Tensor:
    """``weight_OI`` as it is read back from the format ``text``."""
    fmt = parse_format(text)
    return fmt.decode(fmt.encode(weight_OI), (weight_OI.shape[0], weight_OI.shape[1]), torch.float32)


WEIGHTS = (
    Weights(SUBJECT, "smollm2"),
    Weights("MPNet", "mpnet"),
    Weights("MPNet after Q4_1", "mpnet", lambda weight_OI: rounded(weight_OI, PAST)),
    Weights("MiniLM", "minilm"),
)


def matrices_of(weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """Name and values in 32 bits of every block matrix."""
    model = AutoModel.from_pretrained(folder_of(weights.model), dtype=torch.float32)
    for matrix in block_matrices(model):
        weight_OI = model.get_submodule(matrix.name).weight.detach()
        yield matrix.name, weights.change(weight_OI) if weights.change else weight_OI


def measure(weights: Weights) -> pd.DataFrame:
    """One row per matrix and format: squared error, squared norm, and the error relative to a Gaussian's."""
    rows = []
    for name, weight_OI in matrices_of(weights):
        for text in (*FORMATS, *OTHERS):
            error = float((weight_OI - rounded(weight_OI, text)).square().sum())
            norm = float(weight_OI.square().sum())
            ratio = (error / norm) ** 0.5 / relative_error(text)
            rows.append((weights.name, name, text, error, norm, ratio))
    return pd.DataFrame(rows, columns=["weights", "matrix", "format", "error", "norm", "ratio"])


def whole_error(frame: pd.DataFrame, weights: str, text: str) -> float:
    """Relative error of all matrices together."""
    part = frame[(frame["weights"] == weights) & (frame["format"] == text)]
    return float((part["error"].sum() / part["norm"].sum()) ** 0.5)


def table_of(frame: pd.DataFrame) -> str:
    """Relative error by format and model, and its ratio to a Gaussian's."""
    rows = []
    for text in (*FORMATS, *OTHERS):
        gaussian = relative_error(text)
        row = [f"`{text}`", f"{gaussian:.4f}"]
        for weights in WEIGHTS:
            error = whole_error(frame, weights.name, text)
            row.append(f"{error:.4f} ({error / gaussian:.2f})")
        rows.append(row)
    return table(("format", "Gaussian", *(weights.name for weights in WEIGHTS)), rows)


def spread_of(frame: pd.DataFrame, text: str) -> str:
    """Smallest, median and largest ratio of the subject's matrices."""
    part = frame[(frame["weights"] == SUBJECT) & (frame["format"] == text)]
    ratios = part["ratio"].tolist()
    return (
        f"- `{text}`: the {len(ratios)} matrices have {min(ratios):.2f} to {max(ratios):.2f} times the error "
        f"of a Gaussian, median {statistics.median(ratios):.2f}.\n"
    )


def verdict(frame: pd.DataFrame, text: str) -> str:
    """Whether the subject's error in ``text`` is within the margin of the two references."""
    error = whole_error(frame, SUBJECT, text)
    parts = []
    for name, reference in (
        ("a Gaussian", relative_error(text)),
        ("MPNet", whole_error(frame, "MPNet", text)),
    ):
        change = error / reference - 1
        within = "within" if abs(change) <= MARGIN else "not within"
        direction = "above" if change > 0 else "below"
        parts.append(f"{abs(change):.1%} {direction} {name} ({within} {MARGIN:.0%})")
    return f"- `{text}`: SmolLM2's error is {' and '.join(parts)}.\n"


def history(frame: pd.DataFrame, text: str) -> str:
    """Effect of the past alone: one model with and without it."""
    change = whole_error(frame, "MPNet after Q4_1", text) / whole_error(frame, "MPNet", text) - 1
    return f"- `{text}`: going through Q4_1 first changes MPNet's error by {change:+.1%}.\n"


def conclusion(frame: pd.DataFrame) -> str:
    """The formats whose error on SmolLM2 is below MPNet's by more than the margin, and the others."""
    lower, rest = [], []
    for text in (*FORMATS, *OTHERS):
        ratio = whole_error(frame, SUBJECT, text) / whole_error(frame, "MPNet", text)
        (lower if ratio < 1 - MARGIN else rest).append(f"`{text}`")
    return (
        f"SmolLM2's past makes its weights easier to round in {_listed(lower)}: results on SmolLM2 in these "
        "formats are better than they would be on the original weights. It has no such effect in "
        f"{_listed(rest)}.\n"
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none of the formats"


def figure(frame: pd.DataFrame) -> alt.FacetChart:
    """Error of each matrix relative to a Gaussian's, by model, one panel per format."""
    shown = frame[frame["format"].isin(FORMATS)]
    points = alt.Chart(shown).mark_tick(thickness=1.5, opacity=0.6, height=18)
    ticks = points.encode(
        x=alt.X("ratio:Q", title="error relative to a Gaussian's", scale=alt.Scale(zero=False)),
        y=alt.Y("weights:N", title=None, sort=[weights.name for weights in WEIGHTS]),
        color=alt.Color("weights:N", legend=None, scale=alt.Scale(scheme="tableau10")),
    )
    rule = alt.Chart(shown).mark_rule(strokeDash=[4, 3], color="#666").encode(x=alt.datum(1.0))
    panel = alt.layer(rule, ticks).properties(width=330, height=130)
    return panel.facet(column=alt.Column("format:N", title=None, sort=list(FORMATS)))


def page(frame: pd.DataFrame) -> str:
    """The whole page."""
    return (
        "# Is the decoder's past harmless?\n\n"
        "SmolLM2 comes from a GGUF file in Q4_1: its weights went through 4 bits once before any run. If "
        "rounding them again were easier than rounding other weights, results on 4 bits would be too good. "
        "Written by `python benchmarks/decoder_past.py`.\n\n"
        f"{table_of(frame)}\n\n"
        "Relative error ‖W − q(W)‖ / ‖W‖ over all block matrices; in brackets divided by a Gaussian's. "
        f"*MPNet after Q4_1*: the same weights, rounded to `{PAST}` (Q4_1's grid) before. `{PAST}` is the "
        "control: it is the grid that SmolLM2's weights are on. MPNet and MiniLM are in true 32 bits.\n\n"
        "![error of each matrix relative to a Gaussian's](decoder-past.svg)\n\n"
        "*One mark per matrix.*\n\n"
        f"## SmolLM2 against references\n\n{''.join(verdict(frame, text) for text in FORMATS)}"
        f"{''.join(spread_of(frame, text) for text in FORMATS)}\n"
        "## The same model with and without a past\n\n"
        f"{''.join(history(frame, text) for text in (*FORMATS, *OTHERS))}"
        f"\n## Which results are affected\n\n{conclusion(frame)}"
    )


def main() -> None:
    """Measure all models and write page and figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    quiet_transformers()
    frame = pd.concat([measure(weights) for weights in WEIGHTS], ignore_index=True)
    PAGE.write_text(page(frame), encoding="utf-8")
    figure(frame).save(str(PAGE.with_suffix(".svg")))
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
