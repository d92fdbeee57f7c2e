"""The learning rate of a study's arm: its grid, the seed of the grid, the choice by validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from bitrank.planning.learning_rates import (
    SEED,
    at_factor,
    choose_rates,
    grid_specs,
    missing,
    rate_rows,
    with_rates,
)
from bitrank.spec.run_spec import RunSpec
from bitrank.tracking.run_state import StoredRun
from hypothesis import given, settings
from hypothesis import strategies as st

ARMS = [
    RunSpec(config, "toy_sentences", "tiny", seed=seed, profile="study", steps=10, learning_rate=1e-3)
    for config in ("exact-4bits", "uniform-4bits")
    for seed in (0, 1)
]
FACTORS = (0.1, 1.0, 10.0)
CELL, OTHER = (("exact-4bits", "toy_sentences"), ("uniform-4bits", "toy_sentences"))


def ended(loss: float) -> StoredRun:
    return StoredRun("id", "FINISHED", {}, {"val/loss": loss, "time/train_s": 5.0, "time/total_s": 8.0})


def test_grid_has_a_seed_and_an_experiment_of_its_own() -> None:
    grid = grid_specs(ARMS, FACTORS)
    assert [spec.learning_rate for spec in grid] == [1e-4, 1e-3, 1e-2] * 2
    assert {spec.seed for spec in grid} == {SEED} and SEED not in {spec.seed for spec in ARMS}
    assert {spec.profile for spec in grid} == {"study-rates"}


def test_grid_runs_are_as_long_as_those_of_the_arm_and_not_tested() -> None:
    arm = replace(ARMS[0], steps=100, eval_every=50)
    (spec,) = grid_specs([arm], (1.0,))
    assert spec == replace(arm, profile="study-rates", seed=SEED, tested=False)


@pytest.mark.parametrize(
    ("losses", "rate", "at_edge"),
    [((0.5, 0.4, 0.6), 1e-3, False), ((0.5, 0.4, 0.3), 1e-2, True), ((0.5, 0.7, math.nan), 1e-4, True)],
)
def test_rate_of_least_validation_loss_is_chosen(
    losses: tuple[float, ...], rate: float, at_edge: bool
) -> None:
    grid = grid_specs(ARMS[:1], FACTORS)
    runs = {spec.spec_id: ended(loss) for spec, loss in zip(grid, losses, strict=True)}
    chosen = choose_rates(grid, runs)
    assert (chosen[CELL].rate, chosen[CELL].at_edge, chosen[CELL].seconds_per_step) == (rate, at_edge, 0.5)
    assert [spec.learning_rate for spec in with_rates(ARMS, chosen)] == [rate, rate], "both seeds of this arm"
    assert chosen[CELL].seconds == 24.0, "all three runs of the grid"
    (row,) = rate_rows(chosen)
    assert list(row["losses"]) == ["0.0001", "0.001", "0.01"] and row["config"] == "exact-4bits"


def test_diverged_rates_lose_and_unfinished_grids_give_no_choice() -> None:
    grid = grid_specs(ARMS, FACTORS)
    diverged = StoredRun("id", "FAILED", {"finding": "the loss is nan"}, {})
    failed = StoredRun("id", "FAILED", {"failure": "no memory"}, {"val/loss": 0.1})
    states = [ended(0.5), ended(0.4), diverged, ended(0.5), failed, ended(0.3)]
    runs = {spec.spec_id: state for spec, state in zip(grid, states, strict=True)}
    chosen = choose_rates(grid, runs)
    assert chosen.keys() == {CELL} and chosen[CELL].losses["0.01"] is None
    assert choose_rates(grid, {}) == {}
    everywhere = {spec.spec_id: diverged for spec in grid}
    assert choose_rates(grid, everywhere) == {}, "no rate that can be used"


def test_a_grid_of_one_rate_sets_the_rate_and_nothing_else() -> None:
    scaled = at_factor(ARMS, 0.3163)

    assert [spec.learning_rate for spec in scaled] == [
        float(f"{arm.learning_rate * 0.3163:.3g}") for arm in ARMS
    ]
    assert [
        replace(spec, learning_rate=arm.learning_rate) for spec, arm in zip(scaled, ARMS, strict=True)
    ] == ARMS


def walk(losses: Sequence[float], factors: Sequence[float]) -> tuple[dict[str, StoredRun], list[int]]:
    """Walk over a grid whose runs end with ``losses``: the runs, and how many each part of the walk has."""
    grid = grid_specs(ARMS[:1], factors)
    results = {spec.spec_id: ended(loss) for spec, loss in zip(grid, losses, strict=True)}
    runs, counts = dict[str, StoredRun](), list[int]()
    while due := missing(grid, runs, walks=True):
        runs |= {spec.spec_id: results[spec.spec_id] for spec in due}
        counts.append(len(due))
    return runs, counts


@settings(deadline=None)
@given(st.lists(st.floats(1.0, 9.0), min_size=1, max_size=7, unique=True), st.data())
def test_a_walk_finds_the_best_rate_of_a_loss_that_falls_and_then_rises(
    losses: list[float], data: st.DataObject
) -> None:
    best = data.draw(st.integers(0, len(losses) - 1))
    ordered = sorted(losses)
    falling, rising = ordered[len(losses) - best :], ordered[1 : len(losses) - best]
    valley = [*reversed(falling), ordered[0], *rising]
    factors = [10.0 ** (place / 4) for place in range(len(valley))]
    grid = grid_specs(ARMS[:1], factors)
    runs, counts = walk(valley, factors)
    assert choose_rates(grid, runs, walks=True)[CELL].rate == grid[valley.index(min(valley))].learning_rate
    assert sum(counts) == len(runs) <= len(valley)


@pytest.mark.parametrize(
    ("losses", "counts"),
    [
        ((0.9, 0.5, 0.4), [2]),
        ((0.9, 0.4, 0.5), [2, 1]),
        ((0.3, 0.4, 0.5), [2, 1]),
        ((0.9, 0.4, math.nan), [2, 1]),
        ((0.53, 0.6929, 0.6928), [2, 1]),
        ((0.53, math.nan, math.nan), [2, 1]),
    ],
)
def test_a_walk_of_three_rates_saves_the_lowest_where_the_highest_is_better(
    losses: tuple[float, ...], counts: list[int]
) -> None:
    runs, tried = walk(losses, FACTORS)
    assert tried == counts
    grid = grid_specs(ARMS[:1], FACTORS)
    chosen = choose_rates(grid, runs, walks=True)[CELL]
    assert chosen.rate == grid[losses.index(min(losses))].learning_rate, "ties at chance level are no descent"
    assert chosen.seconds == 8.0 * len(runs) and len(chosen.losses) == len(runs)
    assert (CELL in choose_rates(grid, runs)) == (len(runs) == 3), "a whole grid needs all its runs"


def test_a_walk_does_not_choose_beside_a_run_that_failed() -> None:
    grid = grid_specs(ARMS[:1], FACTORS)
    failed = StoredRun("id", "FAILED", {}, {})
    runs = {grid[1].spec_id: failed, grid[2].spec_id: ended(0.4)}
    assert missing(grid, runs, walks=True) == [grid[1]]
    assert choose_rates(grid, runs, walks=True) == {}
