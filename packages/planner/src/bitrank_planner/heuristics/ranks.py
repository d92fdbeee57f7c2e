"""Heuristic rules for ranks: each redistributes the trainable numbers of a uniform plan.

Each rule takes the matrices that get an adapter and a mean rank, and returns the rank of every matrix.
Rounding, bounds and the total follow :func:`~bitrank_planner.heuristics.shares.share_out` unless the rule
says otherwise. Every rule raises :class:`~bitrank_planner.PlanError` if the model or the measurement lacks an
input of the rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from bitrank_planner.depths import places_of
from bitrank_planner.errors import PlanError
from bitrank_planner.heuristics.shares import measured, share_out, step_of, total
from bitrank_planner.problem import Item
from bitrank_planner.registry import Entry

ATTENTION = ("attention", "cross-attention")
FFN = ("ffn",)
SLOPE = 0.5  # linear decay: 1 + SLOPE times the mean in the first layer, 1 − SLOPE times in the last
FOCUS = 3.0  # ratio of the rank of a favoured matrix to that of another
RHO = 2.0  # EVA: ratio of the largest rank to the mean


def uniform(matrices: Sequence[Item], mean: float) -> dict[str, int]:
    """Give every matrix the mean rank; earlier matrices get the remainder of a fractional mean."""
    return share_out(matrices, [1.0] * len(matrices), total(matrices, mean))


def linear_decay(matrices: Sequence[Item], mean: float) -> dict[str, int]:
    """Decrease ranks linearly with depth, from weight 1.5 in the first layer to 0.5 in the last of a stack.

    Matrices outside the layers have weight 1, and so have those of a stack with one layer.
    """
    return _by_depth(matrices, mean, SLOPE)


def linear_growth(matrices: Sequence[Item], mean: float) -> dict[str, int]:
    """Increase ranks linearly with depth, from weight 0.5 to 1.5: the opposite of linear decay."""
    return _by_depth(matrices, mean, -SLOPE)


def _by_depth(matrices: Sequence[Item], mean: float, slope: float) -> dict[str, int]:
    places = places_of(matrices)
    most = max((layers for _, layers in places.values()), default=0)
    if most < 2:
        raise PlanError(
            f"the rule goes by depth: expected matrices in two layers or more, got {most}; use another rule"
        )
    weights = {
        name: 1 + slope - 2 * slope * place / (layers - 1)
        for name, (place, layers) in places.items()
        if layers > 1
    }
    return share_out(matrices, [weights.get(m.name, 1.0) for m in matrices], total(matrices, mean))


def attention_first(matrices: Sequence[Item], mean: float) -> dict[str, int]:
    """Give attention and cross-attention matrices three times the rank of the others."""
    return _focused(matrices, mean, ATTENTION)


def ffn_first(matrices: Sequence[Item], mean: float) -> dict[str, int]:
    """Give feed-forward matrices three times the rank of the others."""
    return _focused(matrices, mean, FFN)


def gradient_probe(matrices: Sequence[Item], mean: float, importance: Mapping[str, float]) -> dict[str, int]:
    """GoRA: r ∝ (I / Σ I) / √(out + in) with I = mean |W ∘ G|.

    ``importance`` maps matrix to I.

    GoRA truncates every fraction and counts its own budget in r·√(out + in). Here the common factor makes the
    plan take the trainable numbers of the uniform plan, as for every rule.
    """
    shares = measured(matrices, importance, "importance mean |W ∘ G|")
    return share_out(
        matrices,
        [i / math.sqrt(step_of(m)) for i, m in zip(shares, matrices, strict=True)],
        total(matrices, mean),
    )


def activation(
    matrices: Sequence[Item], mean: float, ratios: Mapping[str, Sequence[float]]
) -> dict[str, int]:
    """EVA: assign one rank to each of the globally largest explained-variance ratios.

    A matrix gets at most 2 · mean. ``ratios`` maps matrix to the explained-variance ratios of its input's
    leading components, largest first. Ranks are assigned until the next one exceeds the trainable numbers of
    the uniform plan (EVA counts ranks, not numbers). A matrix may get rank 0.
    """
    missing = [matrix.name for matrix in matrices if matrix.name not in ratios]
    if missing:
        raise PlanError(
            f"no explained-variance ratios for {len(missing)} matrices, {missing[0]} first; measure every "
            "matrix's inputs"
        )
    if not all(math.isfinite(ratio) for matrix in matrices for ratio in ratios[matrix.name]):
        raise PlanError(
            "activation sorts explained-variance ratios, and one is not a finite number; measure the inputs "
            "again"
        )
    left, ranks = total(matrices, mean), dict.fromkeys((matrix.name for matrix in matrices), 0)
    most = [min(math.floor(RHO * mean), *matrix.shape) for matrix in matrices]
    taken = [
        (-float(ratio), k, i)
        for i, m in enumerate(matrices)
        for k, ratio in enumerate(sorted(ratios[m.name], reverse=True)[: most[i]])
    ]
    for _, _, i in sorted(taken):
        if (step := step_of(matrices[i])) > left:
            return ranks
        ranks[matrices[i].name] += 1
        left -= step
    if left >= max(map(step_of, matrices)):
        raise PlanError(
            f"activation ran out of ratios with {left:,} trainable numbers left; give {max(most)} ratios per "
            "matrix"
        )
    return ranks


def parameter_norm(matrices: Sequence[Item], mean: float, norms: Mapping[str, float]) -> dict[str, int]:
    """Set ranks in proportion to ‖W‖_F.

    ``norms`` maps matrix to its norm.
    """
    return share_out(matrices, measured(matrices, norms, "norm ‖W‖_F"), total(matrices, mean))


def two_stage(matrices: Sequence[Item], mean: float, importance: Mapping[str, float]) -> dict[str, int]:
    """Manual pruning: the more important half of the matrices shares all rank evenly, the others get 0.

    The half is rounded up. ``importance`` maps matrix to its importance after a short first training stage,
    in any unit. On ties the earlier matrix is kept.
    """
    values = measured(matrices, importance, "importance")
    if not all(map(math.isfinite, values)):
        raise PlanError(
            "two_stage ranks matrices by finite importance; an infinite or missing number came from the "
            "first stage"
        )
    order = sorted(range(len(matrices)), key=lambda i: -values[i])
    kept = [matrices[i] for i in sorted(order[: math.ceil(len(matrices) / 2)])]
    return dict.fromkeys((m.name for m in matrices), 0) | share_out(
        kept, [1.0] * len(kept), total(matrices, mean)
    )


def _focused(matrices: Sequence[Item], mean: float, roles: tuple[str, ...]) -> dict[str, int]:
    if not any(matrix.role in roles for matrix in matrices):
        raise PlanError(
            f"no matrix has the role {' or '.join(roles)}; the roles here: "
            f"{', '.join(sorted({m.role for m in matrices}))}"
        )
    return share_out(
        matrices, [FOCUS if matrix.role in roles else 1.0 for matrix in matrices], total(matrices, mean)
    )


RANK_HEURISTICS: dict[str, Entry[dict[str, int]]] = {
    "uniform": Entry(uniform),
    "linear_decay": Entry(linear_decay),
    "linear_growth": Entry(linear_growth),
    "attention_first": Entry(attention_first),
    "ffn_first": Entry(ffn_first),
    "gradient_probe": Entry(gradient_probe, needs="importance"),
    "activation": Entry(activation, needs="ratios"),
    "parameter_norm": Entry(parameter_norm, needs="norms"),
    "two_stage": Entry(two_stage, needs="importance"),
}
