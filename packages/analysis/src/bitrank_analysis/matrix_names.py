"""Layer number and short module name of a weight matrix from its full name, and bits from its format."""

from __future__ import annotations

import re
from collections.abc import Iterable

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
_LAYER = re.compile(r"^(.*?)\.(\d+)\.(.+)$")
_CROSS = re.compile(r"cross_?att|encdecattention|encoder_attn", re.IGNORECASE)
_BITS = re.compile(r"(\d+)")


def place(matrix: str) -> tuple[int | None, str]:
    """Layer number and short module name of ``matrix``; the layer is None outside the blocks."""
    found = _LAYER.match(matrix)
    if found is None:
        return None, matrix.rsplit(".", 1)[-1]
    module = SHORT.get(found[3], found[3].rsplit(".", 1)[-1])
    return int(found[2]), f"cross {module}" if _CROSS.search(found[3]) else module


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


def with_place(frame: pd.DataFrame, matrices: Iterable[str] = ()) -> pd.DataFrame:
    """Add the columns ``layer`` (NaN outside the blocks) and ``module``, derived from column ``matrix``.

    Layers are counted through the stacks of blocks: those of a decoder follow those of its encoder.
    ``matrices`` names more matrices of the model, so that frames with parts of them count alike.
    """
    names = list(frame["matrix"].unique())
    starts = _starts({*names, *matrices})
    places = {name: place(name) for name in names}
    layers = {
        name: None if layer is None else layer + starts[_stack(name)] for name, (layer, _) in places.items()
    }
    return frame.assign(
        layer=pd.to_numeric(frame["matrix"].map(layers.get)),
        module=frame["matrix"].map(lambda name: places[name][1]),
    )


def _stack(matrix: str) -> str:
    """The name of the list of blocks that ``matrix`` is in; "" outside the blocks."""
    found = _LAYER.match(matrix)
    return found[1] if found else ""


def _starts(matrices: Iterable[str]) -> dict[str, int]:
    """{stack: number of layers before its first one}; encoders come before decoders, else by name."""
    depths: dict[str, int] = {}
    for name in matrices:
        layer, _ = place(name)
        if layer is not None:
            depths[_stack(name)] = max(layer + 1, depths.get(_stack(name), 0))
    starts, layers = {}, 0
    for stack in sorted(depths, key=lambda name: ("decoder" in name, name)):
        starts[stack] = layers
        layers += depths[stack]
    return starts


def module_order(modules: pd.Series) -> list[str]:
    """Distinct modules: those in ``ORDER`` from the block's input to its output, then the others by name."""
    return sorted(set(modules), key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
