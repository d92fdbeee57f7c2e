"""Quantize one weight matrix in several formats and draw the error against the stored bits.

    python examples/quantize_one_matrix.py                          # a feed-forward matrix of MiniLM
    python examples/quantize_one_matrix.py --out error.svg

A number format is a value: it encodes a matrix, decodes it, and counts its bytes, scales included.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import altair as alt
import pandas as pd
import torch
from bitrank.models.locate import locate
from bitrank_quant import parse_format
from torch import Tensor
from transformers import AutoModel

FORMATS = ["int2-g64", "int3-g64", "int4-g64", "nf4", "nf4-dq", "fp4-dq", "int6-g64", "int8", "bf16"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="minilm", help="an embedded model, a hub id or a folder")
    parser.add_argument("--matrix", default="encoder.layer.2.output.dense", help="the module's name")
    parser.add_argument("--out", type=Path, default=Path("quantization-error.svg"), help="the figure")
    arguments = parser.parse_args()

    model = AutoModel.from_pretrained(locate(arguments.model), dtype=torch.float32)
    weight_OI = model.get_submodule(arguments.matrix).weight.detach()
    errors = measure(weight_OI)
    print(errors.to_string(index=False, float_format="{:.4f}".format))
    draw(errors).save(arguments.out)
    print(f"saved: {arguments.out}")


def measure(weight_OI: Tensor) -> pd.DataFrame:
    """For each format the stored bits per weight and the relative error ‖Ŵ − W‖ / ‖W‖ (Frobenius)."""
    rows = []
    for name in FORMATS:
        fmt = parse_format(name)
        shape = (weight_OI.shape[0], weight_OI.shape[1])
        decoded_OI = fmt.decode(fmt.encode(weight_OI), shape, torch.float32)
        error = float((decoded_OI - weight_OI).norm() / weight_OI.norm())
        rows.append({"format": name, "bits": 8 * fmt.nbytes(shape) / weight_OI.numel(), "error": error})
    return pd.DataFrame(rows)


def draw(errors: pd.DataFrame) -> alt.LayerChart:
    """Error against bits, both on logarithmic axes: a straight line is a constant gain per bit."""
    bits = alt.X("bits", title="stored bits per weight", scale=alt.Scale(type="log", nice=False, padding=20))
    error = alt.Y("error", title="relative error", scale=alt.Scale(type="log"))
    base = alt.Chart(errors, width=480, height=320).encode(x=bits, y=error)
    return base.mark_point(filled=True, size=60) + base.mark_text(dx=8, align="left").encode(text="format")


if __name__ == "__main__":
    main()
