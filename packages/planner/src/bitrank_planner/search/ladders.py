"""Plans as positions on ladders: the options of each matrix, smallest first, and steps between them.

Ladders of *all* options by bytes serve the controls, which use no prediction. Ladders of the non-dominated
options (more bytes only at less predicted cost) serve the solvers that start from sensitivities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bitrank_planner.greedy import greedy
from bitrank_planner.problem import Item, Problem, non_dominated

Places = list[int]


class Ladders:
    """Ladders of the items of ``problem``: of all options, or with ``non_dominated_only`` of those alone."""

    def __init__(self, problem: Problem, non_dominated_only: bool) -> None:
        self._problem = problem
        self.ladders = [
            non_dominated(item) if non_dominated_only else _by_bytes(item) for item in problem.items
        ]
        self._nbytes = [
            [item.options[c].nbytes for c in ladder]
            for item, ladder in zip(problem.items, self.ladders, strict=True)
        ]

    @property
    def tops(self) -> Places:
        """The highest position of each ladder."""
        return [len(ladder) - 1 for ladder in self.ladders]

    def choices(self, places: Sequence[int]) -> list[int]:
        """The option indices at ``places``."""
        return [ladder[place] for ladder, place in zip(self.ladders, places, strict=True)]

    def places(self, choices: Sequence[int]) -> Places:
        """The positions of ``choices``, each of which must be on its ladder."""
        return [ladder.index(choice) for ladder, choice in zip(self.ladders, choices, strict=True)]

    def spare(self, places: Sequence[int]) -> int:
        """Bytes of the budget that ``places`` leave unused; negative above the budget."""
        return self._problem.available - sum(
            nbytes[place] for nbytes, place in zip(self._nbytes, places, strict=True)
        )

    def random(self, random: np.random.Generator) -> Places:
        """A random plan that fits: options drawn uniformly, then corrected by :meth:`repair`."""
        return self.repair([int(random.integers(top + 1)) for top in self.tops], random)

    def repair(self, places: Places, random: np.random.Generator) -> Places:
        """Step down at random until the plan fits, then step up at random into the unused bytes.

        Every step of every ladder is equally likely to be next. A plan that fits is returned unchanged, so
        every plan that fits can be proposed.
        """
        spare = self.spare(places)
        if spare >= 0:
            return places
        places = list(places)
        for i in random.permutation(np.repeat(np.arange(len(places)), places)):
            spare += self._nbytes[i][places[i]] - self._nbytes[i][places[i] - 1]
            places[i] -= 1
            if spare >= 0:
                break
        return self._fill(places, spare, random)

    def cheapest(self, places: Places, random: np.random.Generator) -> Places:
        """Step down by least predicted cost per byte until the plan fits, then step up at random.

        Unlike :meth:`repair`, this also fills up a plan that fits. The steps down are those of
        :func:`~bitrank_planner.greedy` on the options up to ``places``; this requires ladders of
        non-dominated options.
        """
        if self.spare(places) < 0:
            zipped = zip(self._problem.items, self.ladders, places, strict=True)
            items = tuple(
                replace(item, options=tuple(item.options[c] for c in ladder[: place + 1]))
                for item, ladder, place in zipped
            )
            places = list(greedy(replace(self._problem, items=items)).choices)
        return self._fill(list(places), self.spare(places), random)

    def _fill(self, places: Places, spare: int, random: np.random.Generator) -> Places:
        """Take random steps up, in place, that fit into ``spare`` bytes.

        A matrix whose next step does not fit gets no further step.
        """
        up = [top - place for top, place in zip(self.tops, places, strict=True)]
        closed: set[int] = set()
        for i in map(int, random.permutation(np.repeat(np.arange(len(places)), up))):
            needed = self._nbytes[i][places[i] + 1] - self._nbytes[i][places[i]]
            if needed > spare or i in closed:
                closed.add(i)
                continue
            spare -= needed
            places[i] += 1
        return places


def step(places: Sequence[int], tops: Sequence[int], count: int, random: np.random.Generator) -> Places:
    """Move ``count`` random matrices that have a choice one step up or down."""
    stepped = list(places)
    movable = [i for i, top in enumerate(tops) if top]
    for i in random.choice(movable, min(count, len(movable)), replace=False) if movable else []:
        up = stepped[i] == 0 or (stepped[i] < tops[i] and random.random() < 0.5)
        stepped[i] += 1 if up else -1
    return stepped


def _by_bytes(item: Item) -> list[int]:
    return sorted(range(len(item.options)), key=lambda c: (item.options[c].nbytes, c))
