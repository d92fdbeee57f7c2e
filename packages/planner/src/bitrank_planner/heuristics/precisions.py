"""Rules of thumb for formats: which matrices get the high one of two.

Each rule takes the matrices and a (high, low) pair of formats and returns the format of each; what a rule does not name gets the low one.
All raise :class:`~bitrank_planner.PlanError` where the model or the measurement lacks what the rule needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bitrank_planner.errors import PlanError
from bitrank_planner.heuristics.ranks import ATTENTION, FFN
from bitrank_planner.heuristics.shares import measured
from bitrank_planner.problem import Item
from bitrank_planner.registry import Entry

THREE_BITS = "int3-g64"


def all_in(matrices: Sequence[Item], fmt: str) -> dict[str, str]:
    """One format everywhere: the extremes, all 4 bits or all 8."""
    return {matrix.name: fmt for matrix in matrices}


def embeddings_and_head_high(matrices: Sequence[Item], high: str, low: str) -> dict[str, str]:
    """Embeddings and the output head high."""
    return _by_role(matrices, high, low, ("embedding", "head"))


def edges_high(matrices: Sequence[Item], high: str, low: str) -> dict[str, str]:
    """The first and the last layer high; what lies outside the layers (embedding, head) is low."""
    layers = {matrix.layer for matrix in matrices if matrix.layer is not None}
    if len(layers) < 3:
        raise PlanError(
            f"edges_high tells outer layers from inner ones: expected three layers or more, got {len(layers)}; use all_in"
        )
    return _where(matrices, high, low, [matrix.layer in (min(layers), max(layers)) for matrix in matrices])


def attention_high_ffn_low(matrices: Sequence[Item], high: str, low: str) -> dict[str, str]:
    """Attention and cross-attention high."""
    return _by_role(matrices, high, low, ATTENTION)


def ffn_high_attention_low(matrices: Sequence[Item], high: str, low: str) -> dict[str, str]:
    """Feed-forward blocks high."""
    return _by_role(matrices, high, low, FFN)


def low_rank_more_bits(
    matrices: Sequence[Item], high: str, low: str, ranks: Mapping[str, int]
) -> dict[str, str]:
    """High where the rank is below the mean: bits make up for a small adapter. ``ranks`` as in a plan, 0 where it has none."""
    return _where(matrices, high, low, _below_mean(matrices, ranks))


def low_rank_fewer_bits(
    matrices: Sequence[Item], high: str, low: str, ranks: Mapping[str, int]
) -> dict[str, str]:
    """Low where the rank is below the mean: what needs little adapting needs few bits. The opposite of :func:`low_rank_more_bits`."""
    return _where(matrices, low, high, _below_mean(matrices, ranks))


def three_bits_on_least_sensitive(
    matrices: Sequence[Item], high: str, added_loss: Mapping[str, float], low: str = THREE_BITS
) -> dict[str, str]:
    """Three bits for the less sensitive half of the matrices (rounded down), high for the rest.

    ``added_loss`` by name: nats measured with that matrix alone in the low format; of equals the earlier one counts as less sensitive.
    """
    loss_M = np.array(measured(matrices, added_loss, "measured added loss"))
    if np.isnan(loss_M).any():
        raise PlanError(
            "three_bits_on_least_sensitive orders matrices by added loss, and one is not a number; measure it again"
        )
    least = set(np.argsort(loss_M, kind="stable")[: len(matrices) // 2].tolist())
    return _where(matrices, low, high, [i in least for i in range(len(matrices))])


def encoder_high_decoder_low(matrices: Sequence[Item], high: str, low: str) -> dict[str, str]:
    """The encoder and all cross-attention high, the rest low; by ``encoder`` and ``decoder`` as parts of the module names."""
    sides = [_side(matrix.name) for matrix in matrices]
    for side in ("encoder", "decoder"):
        if side not in sides:
            raise PlanError(
                f"encoder_high_decoder_low needs an encoder-decoder model; no matrix lies in a module called {side}"
            )
    picked = [
        side == "encoder" or matrix.role == "cross-attention"
        for side, matrix in zip(sides, matrices, strict=True)
    ]
    return _where(matrices, high, low, picked)


def _side(name: str) -> str | None:
    """The first of encoder and decoder that ``name`` runs through."""
    return next((part for part in name.split(".") if part in ("encoder", "decoder")), None)


def _by_role(matrices: Sequence[Item], high: str, low: str, roles: tuple[str, ...]) -> dict[str, str]:
    picked = [matrix.role in roles for matrix in matrices]
    if not any(picked):
        raise PlanError(
            f"no matrix has the role {' or '.join(roles)}; the roles here: {', '.join(sorted({m.role for m in matrices}))}"
        )
    return _where(matrices, high, low, picked)


def _below_mean(matrices: Sequence[Item], ranks: Mapping[str, int]) -> list[bool]:
    rank_M = np.array([ranks.get(matrix.name, 0) for matrix in matrices])
    if (rank_M == rank_M[0]).all():
        raise PlanError(f"every matrix has rank {rank_M[0]}, so none is low; give a plan whose ranks differ")
    return [bool(below) for below in rank_M < rank_M.mean()]


def _where(matrices: Sequence[Item], picked: str, other: str, mask: Sequence[bool]) -> dict[str, str]:
    return {matrix.name: picked if chosen else other for matrix, chosen in zip(matrices, mask, strict=True)}


PRECISION_HEURISTICS: dict[str, Entry[dict[str, str]]] = {
    "all_in": Entry(all_in),
    "embeddings_and_head_high": Entry(embeddings_and_head_high),
    "edges_high": Entry(edges_high),
    "attention_high_ffn_low": Entry(attention_high_ffn_low),
    "ffn_high_attention_low": Entry(ffn_high_attention_low),
    "low_rank_more_bits": Entry(low_rank_more_bits, needs="ranks"),
    "low_rank_fewer_bits": Entry(low_rank_fewer_bits, needs="ranks"),
    "three_bits_on_least_sensitive": Entry(three_bits_on_least_sensitive, needs="added_loss"),
    "encoder_high_decoder_low": Entry(encoder_high_decoder_low),
}
