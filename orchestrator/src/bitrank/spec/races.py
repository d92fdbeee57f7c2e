"""Races among exact plans, by name; :mod:`bitrank.planning.race` runs them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Race:
    """A race among the exact plans for each cost basis and each of ``least_ranks``, the smallest rank."""

    about: str
    least_ranks: tuple[int, ...]


RACES: dict[str, Race] = {
    "race": Race("six exact plans by successive halving: the better half trains twice as long", (0, 8)),
}
