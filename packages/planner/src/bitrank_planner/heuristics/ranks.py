"""Rules of thumb for ranks: the same trainable numbers as a uniform plan, moved to where the rule says that they matter.

Each rule takes the matrices that get an adapter and a mean rank, and returns the rank of each. Rounding, bounds and the total are those
of :func:`~bitrank_planner.heuristics.shares.share_out` unless the rule says otherwise; all raise
:class:`~bitrank_planner.PlanError` where the model or the measurement lacks what the rule needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from bitrank_planner.errors import PlanError
from bitrank_planner.heuristics.shares import measured, share_out, step_of, total
from bitrank_planner.problem import Item
from bitrank_planner.registry import Entry

ATTENTION = ("attention", "cross-attention")
FFN = ("ffn",)
SLOPE = 0.5  # linear decay: 1 + SLOPE times the mean in the first layer, 1 − SLOPE times in the last
FOCUS = 3.0  # what a favoured matrix's rank is to another's
RHO = 2.0  # EVA: the largest rank over the mean


def uniform(matrices: Sequence[Item], mean: float) -> dict[str, int]:
    """The mean rank everywhere; a fraction goes to the earlier matrices."""
    return share_out(matrices, [1.0] * len(matrices), total(matrices, mean))


def linear_decay(matrices: Sequence[Item], mean: float) -> dict[str, int]:
    """Ranks fall linearly with depth, in proportion 1.5 to 0.5 from the first layer to the last; 1 outside the layers."""
    layers = sorted({matrix.layer for matrix in matrices if matrix.layer is not None})
    if len(layers) < 2:
        raise PlanError(
            f"linear_decay goes by depth: expected matrices in two layers or more, got {len(layers)}; use another rule"
        )
    weights = {layer: 1 + SLOPE - 2 * SLOPE * place / (len(layers) - 1) for place, layer in enumerate(layers)}
    return share_out(
        matrices, [1.0 if m.layer is None else weights[m.layer] for m in matrices], total(matrices, mean)
    )


def attention_first(matrices: Sequence[Item], mean: float) -> dict[str, int]:
    """Matrices of attention and cross-attention get three times the rank of the others."""
    return _focused(matrices, mean, ATTENTION)


def ffn_first(matrices: Sequence[Item], mean: float) -> dict[str, int]:
    """Matrices of the feed-forward blocks get three times the rank of the others."""
    return _focused(matrices, mean, FFN)


def gradient_probe(matrices: Sequence[Item], mean: float, importance: Mapping[str, float]) -> dict[str, int]:
    """GoRA: r ∝ (I / Σ I) / √(out + in) with I = mean |W ∘ G|, ``importance`` by name.

    GoRA cuts every fraction off and spends its own budget, counted in r·√(out + in); here the common factor is such that the plan
    takes the uniform plan's trainable numbers, as every rule's does.
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
    """EVA: the globally largest explained-variance ratios of the matrices' inputs take one rank each, 2 · mean at most per matrix.

    ``ratios``: by name, the ratios of the leading components, largest first. Ranks are taken until the next does not fit into the
    uniform plan's trainable numbers (EVA counts ranks, not numbers); a matrix may get none.
    """
    missing = [matrix.name for matrix in matrices if matrix.name not in ratios]
    if missing:
        raise PlanError(
            f"no explained-variance ratios for {len(missing)} matrices, {missing[0]} first; measure every matrix's inputs"
        )
    if not all(math.isfinite(ratio) for matrix in matrices for ratio in ratios[matrix.name]):
        raise PlanError(
            "activation sorts explained-variance ratios, and one is not a finite number; measure the inputs again"
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
            f"activation ran out of ratios with {left:,} trainable numbers left; give {max(most)} ratios per matrix"
        )
    return ranks


def parameter_norm(matrices: Sequence[Item], mean: float, norms: Mapping[str, float]) -> dict[str, int]:
    """Ranks in proportion to ‖W‖_F, ``norms`` by name."""
    return share_out(matrices, measured(matrices, norms, "norm ‖W‖_F"), total(matrices, mean))


def two_stage(matrices: Sequence[Item], mean: float, importance: Mapping[str, float]) -> dict[str, int]:
    """Manual pruning: the more important half of the matrices after a short first stage (rounded up) shares all rank evenly.

    The others get rank 0. ``importance`` by name, in any unit; of equals the earlier matrix stays.
    """
    values = measured(matrices, importance, "importance")
    if not all(map(math.isfinite, values)):
        raise PlanError(
            "two_stage ranks matrices by finite importance; an infinite or missing number came from the first stage"
        )
    order = sorted(range(len(matrices)), key=lambda i: -values[i])
    kept = [matrices[i] for i in sorted(order[: math.ceil(len(matrices) / 2)])]
    return dict.fromkeys((m.name for m in matrices), 0) | share_out(
        kept, [1.0] * len(kept), total(matrices, mean)
    )


def _focused(matrices: Sequence[Item], mean: float, roles: tuple[str, ...]) -> dict[str, int]:
    if not any(matrix.role in roles for matrix in matrices):
        raise PlanError(
            f"no matrix has the role {' or '.join(roles)}; the roles here: {', '.join(sorted({m.role for m in matrices}))}"
        )
    return share_out(
        matrices, [FOCUS if matrix.role in roles else 1.0 for matrix in matrices], total(matrices, mean)
    )


RANK_HEURISTICS: dict[str, Entry[dict[str, int]]] = {
    "uniform": Entry(uniform),
    "linear_decay": Entry(linear_decay),
    "attention_first": Entry(attention_first),
    "ffn_first": Entry(ffn_first),
    "gradient_probe": Entry(gradient_probe, needs="importance"),
    "activation": Entry(activation, needs="ratios"),
    "parameter_norm": Entry(parameter_norm, needs="norms"),
    "two_stage": Entry(two_stage, needs="importance"),
}
