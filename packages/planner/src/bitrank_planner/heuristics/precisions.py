"""Heuristic rules for formats: each selects the matrices that get the high format of two.

Each rule takes the matrices and two formats, ``high`` and ``low``, and returns the format of every matrix.
Matrices that the rule does not select get ``low``. Every rule raises :class:`~bitrank_planner.PlanError` if
the model or the measurement lacks an input of the rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bitrank_planner.depths import places_of
from bitrank_planner.errors import PlanError
from bitrank_planner.heuristics.ranks import ATTENTION, FFN
from bitrank_planner.heuristics.shares import measured
from bitrank_planner.problem import Item
from bitrank_planner.registry import Entry

THREE_BITS = "int3-g64-dq"


def all_in(matrices: Sequence[Item], fmt: str) -> dict[str, str]:
    """Use one format for every matrix, e.g. all 4 bits or all 8 bits."""
    return {matrix.name: fmt for matrix in matrices}


def embeddings_and_head_high(matrices: Sequence[Item], high: str, low: str) -> dict[str, str]:
    """Use the higher format for embeddings and the output head."""
    return _by_role(matrices, high, low, ("embedding", "head"))


def edges_high(matrices: Sequence[Item], high: str, low: str) -> dict[str, str]:
    """Use the higher format for the first and the last layer of each stack, the lower one elsewhere.

    Matrices outside the layers, such as embedding and head, also get the lower one.
    """
    places = places_of(matrices)
    most = max((layers for _, layers in places.values()), default=0)
    if most < 3:
        raise PlanError(
            "edges_high distinguishes outer layers from inner ones: expected three layers or more, got "
            f"{most}; use all_in"
        )
    edges = {name for name, (place, layers) in places.items() if place in (0, layers - 1)}
    return _where(matrices, high, low, [matrix.name in edges for matrix in matrices])


def inner_high(matrices: Sequence[Item], high: str, low: str) -> dict[str, str]:
    """Use the higher format for the layers between the first and the last of each stack, the lower elsewhere.

    It is the opposite of :func:`edges_high` within the layers; matrices outside them also get
    the lower format.
    """
    edges = edges_high(matrices, high, low)
    inner = [matrix.layer is not None and edges[matrix.name] == low for matrix in matrices]
    return _where(matrices, high, low, inner)


def attention_high_ffn_low(matrices: Sequence[Item], high: str, low: str) -> dict[str, str]:
    """Use the higher format for attention and cross-attention matrices."""
    return _by_role(matrices, high, low, ATTENTION)


def ffn_high_attention_low(matrices: Sequence[Item], high: str, low: str) -> dict[str, str]:
    """Use the higher format for feed-forward matrices."""
    return _by_role(matrices, high, low, FFN)


def low_rank_more_bits(
    matrices: Sequence[Item], high: str, low: str, ranks: Mapping[str, int]
) -> dict[str, str]:
    """Use the higher format for ranks below the mean: more bits compensate for a small adapter.

    ``ranks`` maps matrix to rank as a plan does; a matrix that it omits has rank 0.
    """
    return _where(matrices, high, low, _below_mean(matrices, ranks))


def low_rank_fewer_bits(
    matrices: Sequence[Item], high: str, low: str, ranks: Mapping[str, int]
) -> dict[str, str]:
    """Use the lower format for ranks below the mean: little adaptation needs few bits.

    This is the opposite of :func:`low_rank_more_bits`. ``ranks`` maps matrix to rank; a matrix that it omits
    has rank 0.
    """
    return _where(matrices, low, high, _below_mean(matrices, ranks))


def three_bits_on_least_sensitive(
    matrices: Sequence[Item], high: str, added_loss: Mapping[str, float], low: str = THREE_BITS
) -> dict[str, str]:
    """Use three bits for the less sensitive half of the matrices (rounded down), more for the rest.

    ``added_loss`` maps matrix to the loss, in nats, measured with that matrix alone in the low format. On
    ties the earlier matrix counts as less sensitive.
    """
    loss_M = np.array(measured(matrices, added_loss, "measured added loss"))
    if np.isnan(loss_M).any():
        raise PlanError(
            "three_bits_on_least_sensitive orders matrices by added loss, and one is not a number; measure "
            "it again"
        )
    least = set(np.argsort(loss_M, kind="stable")[: len(matrices) // 2].tolist())
    return _where(matrices, low, high, [i in least for i in range(len(matrices))])


def encoder_high_decoder_low(matrices: Sequence[Item], high: str, low: str) -> dict[str, str]:
    """Use the higher format for the encoder and all cross-attention, the lower one for the rest.

    A matrix belongs to the side whose name, ``encoder`` or ``decoder``, is a component of its module name.
    """
    sides = [_side(matrix.name) for matrix in matrices]
    for side in ("encoder", "decoder"):
        if side not in sides:
            raise PlanError(
                "encoder_high_decoder_low needs an encoder-decoder model; no matrix is in a module called "
                f"{side}"
            )
    picked = [
        side == "encoder" or matrix.role == "cross-attention"
        for side, matrix in zip(sides, matrices, strict=True)
    ]
    return _where(matrices, high, low, picked)


def _side(name: str) -> str | None:
    """The first of ``encoder`` and ``decoder`` among the components of ``name``, or None."""
    return next((part for part in name.split(".") if part in ("encoder", "decoder")), None)


def _by_role(matrices: Sequence[Item], high: str, low: str, roles: tuple[str, ...]) -> dict[str, str]:
    picked = [matrix.role in roles for matrix in matrices]
    if not any(picked):
        raise PlanError(
            f"no matrix has the role {' or '.join(roles)}; the roles here: "
            f"{', '.join(sorted({m.role for m in matrices}))}"
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
    "inner_high": Entry(inner_high),
    "attention_high_ffn_low": Entry(attention_high_ffn_low),
    "ffn_high_attention_low": Entry(ffn_high_attention_low),
    "low_rank_more_bits": Entry(low_rank_more_bits, needs="ranks"),
    "low_rank_fewer_bits": Entry(low_rank_fewer_bits, needs="ranks"),
    "three_bits_on_least_sensitive": Entry(three_bits_on_least_sensitive, needs="added_loss"),
    "encoder_high_decoder_low": Entry(encoder_high_decoder_low),
}
