"""Codes of GGUF's tensor types chosen by a quantizer on calibration data.

The groups of Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 are those of formats of this project, so a quantizer chooses
codes and scales in these formats, and the codes are converted. The K types have integer scales under a scale
of 256 weights, which no format has: their matrices are rounded by their encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bitrank_quant import QuantWeight

from bitrank.export.audit import MatrixAudit, matrix_audit
from bitrank.export.gguf.stored import Stored
from bitrank.export.gguf.tensor_types import TENSOR_TYPES
from bitrank.export.rebuild import Rebuilt
from bitrank.export.requantize import requantize

# Format of matrices whose codes the quantizer cannot choose, while it chooses those of the others.
_UNROUNDED = "fp32"


@dataclass(frozen=True)
class ChosenCodes:
    """Matrices with codes chosen by the quantizer, their audits, and sentences for the user."""

    matrices: dict[str, Stored]
    audits: dict[str, MatrixAudit]
    notes: list[str]


def choose_codes(rebuilt: Rebuilt, quantizer: str, rounded: Mapping[str, Stored]) -> ChosenCodes:
    """Choose the codes of matrices of ``rounded`` whose values change and whose type allows it.

    The adapter is folded in; the model of ``rebuilt`` changes in place. Raises :class:`UserError` if the task
    has no training examples for calibration.
    """
    changing = {name: one for name, one in rounded.items() if _changes(rebuilt, name, one)}
    formats = {name: one.type.chosen.format for name, one in changing.items() if one.type.chosen is not None}
    notes = _notes(changing, quantizer)
    if not formats:
        return ChosenCodes({}, {}, notes)
    weights = {name: rebuilt.stored_and_adapted(name) for name in formats}
    others = {name for name in rebuilt.layers() if rebuilt.rank(name) and name not in formats}
    all_formats = {**dict.fromkeys(others, _UNROUNDED), **formats}
    model = requantize(rebuilt, quantizer, all_formats, compare=False).model
    matrices, audits = {}, {}
    for name, (stored_OI, adapted_OI) in weights.items():
        one = changing[name]
        weight = model.get_submodule(name).quantized
        assert isinstance(weight, QuantWeight) and one.type.chosen is not None
        rows = one.type.chosen.from_codes(weight.tensors, weight.shape)
        matrices[name] = Stored(one.type, rows, one.kept)
        result_OI = matrices[name].values().to(adapted_OI.device)
        three_OI = (stored_OI, adapted_OI, result_OI)
        audits[name] = matrix_audit(rebuilt, name, one.type.name, three_OI, one.kept)
    return ChosenCodes(matrices, audits, notes)


def _changes(rebuilt: Rebuilt, name: str, one: Stored) -> bool:
    """Whether the quantized matrix ``name`` cannot keep its codes."""
    return one.type.from_codes is None or not one.kept or rebuilt.rank(name) > 0


def _notes(changing: Mapping[str, Stored], quantizer: str) -> list[str]:
    """The sentence on matrices in few bits that the quantizer cannot choose codes for."""
    fixed = [one.type for one in changing.values() if one.type.chosen is None and one.type.bits < 16]
    if not fixed:
        return []
    found = {kind.name for kind in fixed}
    names = ", ".join(name for name in TENSOR_TYPES if name in found)
    able = ", ".join(kind.name for kind in TENSOR_TYPES.values() if kind.chosen is not None)
    return [
        f"{len(fixed)} matrices are rounded to the nearest code, not by {quantizer}: their types ({names}) "
        f"have scales that it cannot choose; it chooses the codes of {able}"
    ]
