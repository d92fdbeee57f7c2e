"""Rank plans: the rank of every adapted matrix as plain data ``{module name: rank}``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from bitrank_adapters.errors import AdapterError

RankPlan = dict[str, int]


def uniform_ranks(names: list[str], rank: int) -> RankPlan:
    """The same ``rank`` for all ``names`` (LoRA, Hu et al. 2022)."""
    return dict.fromkeys(names, rank)


def role_ranks(roles: Mapping[str, str], rank_of_role: Mapping[str, int]) -> RankPlan:
    """One rank per role, for example attention 6 and FFN 10.

    Raises :class:`AdapterError` for a role without a rank.
    """
    missing = sorted(set(roles.values()) - set(rank_of_role))
    if missing:
        raise AdapterError(
            f"no rank is given for the role {missing[0]!r}; the pattern has {', '.join(rank_of_role)}"
        )
    return {name: rank_of_role[role] for name, role in roles.items()}


def positive_ranks(plan: Mapping[str, int]) -> RankPlan:
    """The matrices of ``plan`` that get an adapter: those with a rank above 0."""
    return {name: rank for name, rank in plan.items() if rank > 0}


def check_ranks(
    plan: RankPlan,
    shapes: Mapping[str, tuple[int, int]],
    heads: Sequence[str] = (),
    others_train: bool = False,
) -> None:
    """Raise :class:`AdapterError` if the plan names an unknown matrix, a rank does not fit, or nothing
    trains.

    ``shapes`` maps each matrix to (out, in); a rank fits from 0 (no adapter) to the smaller of both. With
    ``heads`` that are trained in full, or if ``others_train`` (group scales), a plan may have rank 0
    everywhere.
    """
    if not positive_ranks(plan) and not heads and not others_train:
        problem = "rank 0 everywhere" if plan else "the rank plan is empty"
        raise AdapterError(
            f"{problem}: there is nothing to train; give at least one matrix a rank of 1 or more"
        )
    for name, rank in plan.items():
        if name not in shapes:
            near = difflib.get_close_matches(name, shapes, n=3, cutoff=0.3) or sorted(shapes)[:3]
            raise AdapterError(
                f"the rank plan names {name!r}, which this model lacks; nearest: {', '.join(near)}"
            )
        if not 0 <= rank <= min(shapes[name]):
            raise AdapterError(
                f"rank {rank} does not fit {name!r} of shape {shapes[name]}; give 0 to {min(shapes[name])}"
            )
