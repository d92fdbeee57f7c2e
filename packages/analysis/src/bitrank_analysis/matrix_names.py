"""Layer number and short module name of a weight matrix from its full name, and bits from its format."""

from __future__ import annotations

import re

import pandas as pd

from bitrank_analysis.errors import AnalysisError

# End of a module's name → short label for figures. A name without an entry is labelled by its last part.
SHORT = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "o",
    "intermediate.dense": "up",
    "output.dense": "down",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
# From the input of a block to its output.
ORDER = ("q", "k", "v", "o", "gate", "up", "down")
_LAYER = re.compile(r"^.*?\.(\d+)\.(.+)$")
_BITS = re.compile(r"(\d+)")


def place(matrix: str) -> tuple[int | None, str]:
    """Layer number and short module name of ``matrix``; the layer is None outside the blocks."""
    found = _LAYER.match(matrix)
    if found is None:
        return None, matrix.rsplit(".", 1)[-1]
    return int(found[1]), SHORT.get(found[2], found[2].rsplit(".", 1)[-1])


def nominal_bits(number_format: str) -> int:
    """Bits of one stored number, without its share of the scales: ``"nf4-dq"`` → 4.

    Raises :class:`AnalysisError` if the format's name contains no number.
    """
    found = _BITS.search(number_format)
    if found is None:
        raise AnalysisError(
            f"expected a number format with its bits in its name, such as nf4 or bf16, got {number_format!r}"
        )
    return int(found[1])


def with_place(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the columns ``layer`` (NaN outside the blocks) and ``module``, derived from column ``matrix``."""
    places = {name: place(name) for name in frame["matrix"].unique()}
    layers = pd.to_numeric(frame["matrix"].map(lambda name: places[name][0]))
    return frame.assign(layer=layers, module=frame["matrix"].map(lambda name: places[name][1]))


def module_order(modules: pd.Series) -> list[str]:
    """Distinct modules: those in ``ORDER`` from the block's input to its output, then the others by name."""
    return sorted(set(modules), key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
