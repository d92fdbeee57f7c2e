"""Where a weight matrix stands in a transformer, read off its module name: layer number and module, and the
bits of its format.
"""

from __future__ import annotations

import re

import pandas as pd

from bitrank_analysis.errors import AnalysisError

# Long endings of module names → what a figure has room for. A name that is not here is shown by its last
# part.
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
    """Layer number and short module name of ``matrix``; a matrix outside the layers has no layer."""
    found = _LAYER.match(matrix)
    if found is None:
        return None, matrix.rsplit(".", 1)[-1]
    return int(found[1]), SHORT.get(found[2], found[2].rsplit(".", 1)[-1])


def nominal_bits(number_format: str) -> int:
    """Bits of one stored number by the format's text, ``"nf4-dq"`` → 4; scales are not counted. Raises
    :class:`AnalysisError`.
    """
    found = _BITS.search(number_format)
    if found is None:
        raise AnalysisError(
            f"expected a number format with its bits in its name, such as nf4 or bf16, got {number_format!r}"
        )
    return int(found[1])


def with_place(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with columns ``layer`` (NaN outside the layers) and ``module`` added from its column
    ``matrix``.
    """
    places = {name: place(name) for name in frame["matrix"].unique()}
    layers = pd.to_numeric(frame["matrix"].map(lambda name: places[name][0]))
    return frame.assign(layer=layers, module=frame["matrix"].map(lambda name: places[name][1]))


def module_order(modules: pd.Series) -> list[str]:
    """The distinct modules, known ones from the block's input to its output, others after them by name."""
    return sorted(set(modules), key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
