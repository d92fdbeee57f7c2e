"""The joint problem: one (format, rank) per weight matrix, least predicted loss, under one byte budget.

    minimise   Σ_i Σ_c cost_ic x_ic        x_ic ∈ {0, 1},  Σ_c x_ic = 1 for every matrix i
    subject to Σ_i Σ_c bytes_ic x_ic ≤ budget − fixed
               Σ_i Σ_c trainable_ic x_ic ≤ max_trainable (if given)
               the items of one tie have one format (if there are ties; their ranks stay free)

An item is one matrix with all its options. An option is one format with one rank, and their joint cost and
size. The caller provides the numbers; this package never accesses a model.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bitrank_planner.errors import Infeasible, PlanError


@dataclass(frozen=True, slots=True)
class Option:
    """One (format, rank) of a matrix.

    ``nbytes`` counts codes, scales and adapter; ``cost`` is the predicted added loss in nats; ``trainable``
    counts the trained numbers.
    """

    format: str
    rank: int
    nbytes: int
    cost: float
    trainable: int = 0


@dataclass(frozen=True)
class Item:
    """One weight matrix with its options.

    Heuristic rules use ``role`` and ``layer`` (None outside the blocks). ``shape`` is (out, in).
    """

    name: str
    options: tuple[Option, ...]
    role: str = "other"
    layer: int | None = None
    shape: tuple[int, int] = (1, 1)

    @property
    def stack(self) -> str:
        """The name of the list of blocks that the item is in; empty outside the blocks.

        An encoder and a decoder each count their blocks from 0.
        """
        before, found, _ = self.name.partition(f".{self.layer}.")
        return before if found else ""


@dataclass(frozen=True)
class Problem:
    """Weight matrices with their options, under the byte ``budget`` of the whole model.

    ``fixed`` counts the bytes that no choice changes (norms, biases); ``max_trainable`` limits the trained
    numbers (None: no limit). The items that a tuple of ``ties`` names share one format. Raises
    :class:`PlanError` for an item without options, a duplicate name, a cost that is not finite, negative
    bytes or trainable numbers, a rank above the smaller side of the matrix, an unknown name in a tie, an item
    in two ties, and a tie without a format that all its items offer.
    """

    items: tuple[Item, ...]
    budget: int
    fixed: int = 0
    max_trainable: int | None = None
    ties: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.items:
            raise PlanError("there is nothing to plan: expected at least one matrix, got none")
        if len({item.name for item in self.items}) < len(self.items):
            raise PlanError("two matrices have the same name; every matrix is planned once")
        for item in self.items:
            _check_options(item)
        _check_ties(self)

    @property
    def available(self) -> int:
        """Bytes available for all items together."""
        return self.budget - self.fixed

    @property
    def smallest(self) -> int:
        """Size in bytes of the smallest plan, ``fixed`` included; ignores the limit on trainable numbers."""
        return self.fixed + sum(_least_bytes(group) for group in self.groups)

    @property
    def groups(self) -> list[tuple[Item, ...]]:
        """Items that share a format: the ties, at the place of their first item, and single items."""
        if not self.ties:
            return [(item,) for item in self.items]
        items = {item.name: item for item in self.items}
        tie_of = {name: tie for tie in self.ties for name in tie}
        members = dict.fromkeys(tie_of.get(name, (name,)) for name in items)
        return [tuple(map(items.__getitem__, names)) for names in members]

    def item(self, name: str) -> Item:
        """The item called ``name``. Raises :class:`PlanError` that lists the nearest names."""
        for item in self.items:
            if item.name == name:
                return item
        raise _no_matrix(name, [item.name for item in self.items])

    def pinned(self, pins: Mapping[str, tuple[str | None, int | None]]) -> Problem:
        """Return the problem with some choices fixed: ``{name: (format or None, rank or None)}``.

        None leaves that half free. Raises :class:`PlanError` for a name or a choice that the problem does not
        have.
        """
        for name in pins:
            self.item(name)
        return replace(
            self,
            items=tuple(_pin(item, *pins[item.name]) if item.name in pins else item for item in self.items),
        )

    def plan(self, choices: Sequence[int], solver: str) -> Plan:
        """The plan that takes option ``choices[i]`` of item i."""
        taken = [item.options[choice] for item, choice in zip(self.items, choices, strict=True)]
        return Plan(
            solver=solver,
            precision={item.name: option.format for item, option in zip(self.items, taken, strict=True)},
            ranks={
                item.name: option.rank for item, option in zip(self.items, taken, strict=True) if option.rank
            },
            nbytes=self.fixed + sum(option.nbytes for option in taken),
            cost=math.fsum(option.cost for option in taken),
            trainable=sum(option.trainable for option in taken),
            choices=tuple(int(choice) for choice in choices),
        )

    def find(self, precision: Mapping[str, str], ranks: Mapping[str, int], solver: str) -> Plan:
        """The plan with these formats and ranks; a matrix that ``ranks`` omits has rank 0.

        Raises :class:`PlanError` for an option that is not offered.
        """
        return self.plan(
            [_find(item, precision[item.name], ranks.get(item.name, 0)) for item in self.items], solver
        )

    def fits(self, plan: Plan) -> bool:
        """Whether ``plan`` satisfies both limits and the ties."""
        return (
            plan.nbytes <= self.budget
            and (self.max_trainable is None or plan.trainable <= self.max_trainable)
            and all(_share_format(plan, tie) for tie in self.ties)
        )

    def check_feasible(self) -> None:
        """Raise :class:`Infeasible` if :attr:`smallest` exceeds the budget.

        That size ignores the limit on trainable numbers, under which :func:`~bitrank_planner.exact` finds it.
        """
        if self.smallest > self.budget:
            anyhow = "" if self.max_trainable is None else ", whatever it trains,"
            raise Infeasible(
                f"a budget of {self.budget:,} bytes is too small: the smallest plan{anyhow} takes "
                f"{self.smallest:,} ({self.fixed:,} of them in what cannot be chosen). "
                f"Give {self.smallest:,} or more, or offer smaller formats or ranks.",
                self.smallest,
            )


@dataclass(frozen=True)
class Plan:
    """A format and a rank for every matrix, with the plan's bytes, cost in nats and trainable numbers.

    ``ranks`` omits matrices without an adapter. ``choices`` holds the option index of each item. ``bound`` is
    the solver's proven lower bound on the cost of every plan of the problem; None from a solver that proves
    none.
    """

    solver: str
    precision: dict[str, str]
    ranks: dict[str, int]
    nbytes: int
    cost: float
    trainable: int
    choices: tuple[int, ...]
    bound: float | None = field(default=None, compare=False)

    @property
    def gap(self) -> float | None:
        """Largest saving of any better plan, relative to the cost of this plan; None without a bound."""
        if self.bound is None:
            return None
        saved = self.cost - self.bound
        return saved / abs(self.cost) if self.cost else (0.0 if saved <= 0 else math.inf)


def non_dominated(item: Item, trainable: bool = False) -> list[int]:
    """Indices of the non-dominated options of ``item``, smallest first.

    An option is dominated if another one has no more bytes and no more cost, and with ``trainable`` trains no
    more numbers. Of equal options the first is kept.
    """
    return front(np.array([(o.nbytes, o.cost, o.trainable if trainable else 0) for o in item.options]))


def front(figures_OK: np.ndarray) -> list[int]:
    """Indices of the non-dominated rows of ``figures_OK`` (bytes, cost, trained numbers), smallest first.

    Of equal rows the first is kept.
    """
    order = np.lexsort((figures_OK[:, 2], figures_OK[:, 1], figures_OK[:, 0]))
    figures_OK = figures_OK[order]
    if not figures_OK[:, 2].any():  # two figures: a row must cost less than all smaller ones
        least_O = np.minimum.accumulate(figures_OK[:, 1])
        beaten_O: np.ndarray = np.concatenate([[False], figures_OK[1:, 1] >= least_O[:-1]])
    else:
        no_worse_OO = (figures_OK[:, None] <= figures_OK).all(axis=2)
        beaten_O = np.asarray(np.triu(no_worse_OO, 1).any(axis=0))
    return [int(choice) for choice in order[~beaten_O]]


def shared_formats(items: Sequence[Item]) -> list[str]:
    """The formats that all of ``items`` offer, in the order of the first one."""
    shared = list(dict.fromkeys(option.format for option in items[0].options))
    for item in items[1:]:
        offered = {option.format for option in item.options}
        shared = [fmt for fmt in shared if fmt in offered]
    return shared


def _share_format(plan: Plan, tie: Sequence[str]) -> bool:
    return len({plan.precision[name] for name in tie}) == 1


def _least_bytes(items: Sequence[Item]) -> int:
    """Bytes of the smallest choice for ``items`` in one format."""
    sizes = []
    for fmt in shared_formats(items):
        sizes.append(sum(_least_bytes_in(item, fmt) for item in items))
    return min(sizes)


def _least_bytes_in(item: Item, fmt: str) -> int:
    return min(option.nbytes for option in item.options if option.format == fmt)


def _check_ties(problem: Problem) -> None:
    seen: set[str] = set()
    for tie in problem.ties:
        for name in tie:
            problem.item(name)
            if name in seen:
                raise PlanError(f"{name} is in two ties; a matrix can be in one")
            seen.add(name)
    if not problem.ties:
        return
    for group in problem.groups:
        if not shared_formats(group):
            offers = "; ".join(
                f"{item.name}: {', '.join(dict.fromkeys(option.format for option in item.options))}"
                for item in group
            )
            raise PlanError(
                f"tied matrices share one format, but these offer no common one: {offers}. Pin them to the "
                "same format, or do not tie them"
            )


def _check_options(item: Item) -> None:
    if not item.options:
        raise PlanError(f"{item.name} has no option: expected at least one (format, rank)")
    for option in item.options:
        what = f"{item.name} as {option.format} with rank {option.rank}"
        if not math.isfinite(option.cost):
            raise PlanError(
                f"{what} costs {option.cost}: expected a finite number; measure again on data that gives a "
                "finite loss"
            )
        if option.nbytes < 0 or option.trainable < 0:
            raise PlanError(
                f"{what} takes {option.nbytes} bytes and trains {option.trainable} numbers: neither can be "
                "negative"
            )
        if not 0 <= option.rank <= min(item.shape) and item.shape != (1, 1):
            raise PlanError(
                f"rank {option.rank} does not fit {item.name} of shape {item.shape}: expected 0 to "
                f"{min(item.shape)}"
            )


def _pin(item: Item, fmt: str | None, rank: int | None) -> Item:
    kept = tuple(o for o in item.options if fmt in (None, o.format) and rank in (None, o.rank))
    if not kept:
        raise PlanError(
            f"{item.name} cannot be {fmt or 'any format'} with rank {'any' if rank is None else rank}; "
            f"{_offered(item)}"
        )
    return replace(item, options=kept)


def _find(item: Item, fmt: str, rank: int) -> int:
    for index, option in enumerate(item.options):
        if option.format == fmt and option.rank == rank:
            return index
    raise PlanError(f"{item.name} is not offered as {fmt} with rank {rank}; {_offered(item)}")


def _offered(item: Item) -> str:
    formats = dict.fromkeys(option.format for option in item.options)
    ranks = sorted({option.rank for option in item.options})
    return f"offered: {', '.join(formats)}; ranks {', '.join(map(str, ranks))}"


def _no_matrix(name: str, names: Iterable[str]) -> PlanError:
    names = list(names)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or sorted(names)[:3]
    return PlanError(f"{name!r} is no matrix of this problem; nearest: {', '.join(near)}")
