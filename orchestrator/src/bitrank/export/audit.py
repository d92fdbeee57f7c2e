"""The audit of an export: metrics before and after, error and format of every matrix, and bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from bitrank.export.rebuild import Rebuilt


@dataclass(frozen=True)
class MatrixAudit:
    """One exported matrix: planned ``format``, the format that it is ``stored`` in, and rank.

    ``stored`` is the runtime's own name. ``before`` and ``after`` are the relative Frobenius distances of W_q
    and of the exported matrix from W_q + scale · B A. ``kept``: the stored format can hold the codes of
    the planned one.
    """

    format: str
    stored: str
    rank: int
    before: float
    after: float
    kept: bool = True


@dataclass(frozen=True)
class Audit:
    """Validation metrics of the adapted and of the exported model, its matrices, and bytes.

    ``planned_bytes`` are those of the plan, for the base without an adapter. ``weight_bytes`` are those of
    all exported tensors; files have headers and tokenizers besides. ``adapter_bytes`` are those of them that
    belong to an adapter apart from its base, and ``planned_adapter_bytes`` those of its plan; 0 without one.
    ``rounded`` are the metrics of the same export with every matrix rounded to nearest; empty unless a
    quantizer chose the codes.
    """

    target: str
    before: dict[str, float]
    after: dict[str, float]
    matrices: dict[str, MatrixAudit]
    planned_bytes: int
    weight_bytes: int
    rounded: dict[str, float] = field(default_factory=dict)
    adapter_bytes: int = 0
    planned_adapter_bytes: int = 0

    @property
    def base_bytes(self) -> int:
        """Bytes of the exported tensors of the base; 0 if the adapter is exported alone."""
        return self.weight_bytes - self.adapter_bytes

    @property
    def added_loss(self) -> float:
        """Increase of the validation loss by the export, in nats."""
        return self.after["loss"] - self.before["loss"]

    def replaced(self) -> dict[tuple[str, str], int]:
        """Numbers of matrices by (planned format, other format that they are stored in)."""
        counts: dict[tuple[str, str], int] = {}
        for row in self.matrices.values():
            if not row.kept:
                counts[row.format, row.stored] = counts.get((row.format, row.stored), 0) + 1
        return counts

    def as_data(self) -> dict[str, object]:
        """The audit as plain data."""
        replaced = [
            {"planned": planned, "stored": stored, "matrices": count}
            for (planned, stored), count in self.replaced().items()
        ]
        return {**asdict(self), "added_loss": self.added_loss, "replaced": replaced}


def matrix_audit(
    rebuilt: Rebuilt, name: str, stored_as: str, three_OI: tuple[Tensor, Tensor, Tensor], kept: bool = True
) -> MatrixAudit:
    """Audit the matrix ``name``; ``three_OI`` are W_q, W_q + scale · B A and the exported matrix."""
    stored_OI, adapted_OI, exported_OI = three_OI
    whole = float(adapted_OI.norm()) or 1.0
    before = float((adapted_OI - stored_OI).norm()) / whole
    after = float((adapted_OI - exported_OI.float()).norm()) / whole
    return MatrixAudit(rebuilt.format(name), stored_as, rebuilt.rank(name), before, after, kept)
