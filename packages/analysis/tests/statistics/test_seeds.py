"""The interval over seeds of one arm, the moderated spread of all arms, and Holm's correction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bitrank_analysis.statistics.compare import compare_arms
from bitrank_analysis.statistics.examples import ArmResults
from bitrank_analysis.statistics.families import holm
from bitrank_analysis.statistics.moderation import SeedSpread, seed_spread
from bitrank_analysis.statistics.seeds import over_seeds
from scipy import special, stats
from statsmodels.stats.multitest import multipletests


def arm(name: str, qualities: list[float], seeds: tuple[int, ...] | None = None) -> ArmResults:
    """An arm whose runs have these qualities, on two examples of weight 1."""
    values_SN = np.repeat(np.array(qualities)[:, None], 2, axis=1)
    return ArmResults(name, "acc", seeds or tuple(range(len(qualities))), values_SN, np.ones(2))


def test_interval_over_seeds_equals_students_t() -> None:
    differences = np.array([0.01, 0.03, 0.02])
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert over_seeds(differences) == pytest.approx((interval.low, interval.high))
    assert all(math.isnan(limit) for limit in over_seeds(np.array([0.01])))


def test_arms_of_similar_spread_are_pooled() -> None:
    qualities_AS = np.array([[0.80, 0.83, 0.79], [0.84, 0.86, 0.87], [0.81, 0.81, 0.83], [0.85, 0.87, 0.83]])
    spread = seed_spread([arm(str(row), list(values)) for row, values in enumerate(qualities_AS)])
    assert spread is not None and spread.prior_df == math.inf
    assert (spread.residual_df, spread.variance) == pytest.approx(
        (8, qualities_AS.var(axis=1, ddof=1).mean())
    )
    found = spread.error(qualities_AS[1] - qualities_AS[0], size=2.0)
    assert (found.error, found.df) == pytest.approx((math.sqrt(2 * spread.variance / 3), 8))


def test_significant_common_seed_effect_is_removed() -> None:
    values_AS = np.array([[0.80, 0.83, 0.79], [0.84, 0.85, 0.85], [0.70, 0.72, 0.75]]) + np.array(
        [0.0, 0.3, -0.1]
    )
    residual_AS = (
        values_AS - values_AS.mean(axis=1, keepdims=True) - values_AS.mean(axis=0) + values_AS.mean()
    )
    spread = seed_spread([arm(str(row), list(values)) for row, values in enumerate(values_AS)])
    assert spread is not None and spread.residual_df == pytest.approx(4)
    assert spread.variance == pytest.approx((residual_AS**2).sum() / 4, rel=0.5)
    assert spread.variance < 0.02 * values_AS.var(axis=1, ddof=1).mean()


_ARMS_AS = np.array([[0.80, 0.83, 0.79], [0.84, 0.86, 0.82], [0.70, 0.72, 0.70], [0.75, 0.77, 0.73]])
_WITH_SEED_EFFECT = _ARMS_AS + np.array([0.0, 0.3, -0.1])


@pytest.mark.parametrize("seeds", [(2, 3), (6, 7)])
def test_arm_that_shares_at_most_one_seed_leaves_the_spread_of_others_unchanged(
    seeds: tuple[int, ...],
) -> None:
    arms = [arm(str(row), list(values)) for row, values in enumerate(_WITH_SEED_EFFECT)]
    alone, joined = seed_spread(arms), seed_spread([*arms, arm("extra", [0.6, 0.9], seeds)])
    assert alone is not None and joined is not None
    assert alone.prior_df == joined.prior_df == math.inf
    differences = _WITH_SEED_EFFECT[1] - _WITH_SEED_EFFECT[0]
    one, other = alone.error(differences, size=2.0), joined.error(differences, size=2.0)
    assert (other.error, other.df) == pytest.approx((one.error, 6))
    assert one.df == pytest.approx(6)


def test_seed_that_no_other_arm_has_is_no_evidence_on_the_spread() -> None:
    arms = [arm(str(row), list(values)) for row, values in enumerate(_WITH_SEED_EFFECT)]
    without = seed_spread([*arms, arm("extra", [0.90, 0.66], (1, 2))])
    joined = seed_spread([*arms, arm("extra", [0.90, 0.66, 0.1], (1, 2, 3))])
    assert without is not None and joined is not None and joined.prior_df < math.inf
    assert (joined.variance, joined.prior_df, joined.residual_df) == pytest.approx(
        (without.variance, without.prior_df, without.residual_df)
    )


def test_collapsed_run_does_not_widen_other_arms() -> None:
    spread = seed_spread(
        [arm("a", [0.86, 0.861, 0.859]), arm("b", [0.80, 0.80, 0.798]), arm("c", [0.862, 0.86, 0.50])]
    )
    assert spread is not None
    steady = spread.error(np.array([-0.06, -0.061, -0.061]), size=2.0)
    collapsed = spread.error(np.array([0.002, -0.001, -0.359]), size=2.0)
    assert steady.error < 0.01 and collapsed.error > 0.1


def test_collapsed_run_keeps_the_spread_of_its_own_comparison() -> None:
    """Pooling over 20 arms would divide the collapsed run's variance by 20 and give a false verdict."""
    generator = np.random.default_rng(0)
    arms = [arm(str(n), list(0.85 + generator.normal(0, 0.005, 3))) for n in range(19)]
    collapsed = [0.85, 0.86, 0.50]
    spread = seed_spread([*arms, arm("collapsed", collapsed)])
    assert spread is not None and spread.prior_df < math.inf
    values_AS = np.stack([*(one.values_SN[:, 0] for one in arms), np.array(collapsed)])
    residual_AS = (
        values_AS - values_AS.mean(axis=1, keepdims=True) - values_AS.mean(axis=0) + values_AS.mean()
    )
    pooled = SeedSpread(
        float((residual_AS**2).sum()) / 38, math.inf, 38.0
    )  # residual variance of a block design
    differences = values_AS[-1] - values_AS[0]

    def p(spread: SeedSpread) -> float:
        found = spread.error(differences, size=2.0)
        return float(2 * stats.t.sf(abs(differences.mean()) / found.error, found.df))

    assert p(pooled) < 0.01 and p(spread) > 0.1


def test_moderated_variance_equals_smyth() -> None:
    """Smyth (2004), section 6.2: digamma and trigamma of the mean and excess variance of log variances."""
    qualities = [[0.0, 0.1, 0.2], [0.0, 0.0, 0.01], [0.3, 0.29, 0.1], [0.5, 0.52, 0.5], [0.2, 0.2, 0.6]]
    values_AS = np.array(qualities)
    spread = seed_spread([arm(str(n), row) for n, row in enumerate(qualities)])
    log_A = np.log(values_AS.var(axis=1, ddof=1)) - special.digamma(1.0)
    excess = log_A.var(ddof=1) - special.polygamma(1, 1.0)
    assert spread is not None and excess > 0
    assert special.polygamma(1, spread.prior_df / 2) == pytest.approx(excess)
    expected = log_A.mean() + special.digamma(spread.prior_df / 2) - math.log(spread.prior_df / 2)
    assert spread.variance == pytest.approx(math.exp(expected))
    differences = values_AS[1] - values_AS[0]
    found = SeedSpread(0.02, 3.0, 8.0).error(differences, size=2.0)
    moderated = (3 * 0.04 + 2 * differences.var(ddof=1)) / 5
    assert (found.error, found.df) == pytest.approx((math.sqrt(moderated / 3), 5))


def test_arms_with_one_seed_do_not_enter_the_spread() -> None:
    assert seed_spread([arm("a", [0.8]), arm("b", [0.9])]) is None
    two = [arm("a", [0.80, 0.83, 0.79]), arm("b", [0.84, 0.85, 0.85])]
    assert seed_spread([*two, arm("c", [0.1])]) == seed_spread(two)


def test_seeds_that_tie_leave_a_spread_of_half_an_answer() -> None:
    """24 of 40 right twice against 34 twice: ±t·√(2·(0.5/40)²/2) over seeds, not an interval of width 0."""
    right_SN = np.zeros((2, 2, 40))
    right_SN[0, 0, :24] = right_SN[0, 1, 3:27] = right_SN[1, 0, :34] = right_SN[1, 1, 2:36] = 1
    arms = {name: ArmResults(name, "acc", (0, 1), right_SN[n], np.ones(40)) for n, name in enumerate("ab")}
    spread, row = seed_spread(arms.values()), compare_arms(arms, ["a"]).iloc[0]
    assert spread is not None and spread.variance == pytest.approx((0.5 / 40) ** 2)
    half = stats.t.ppf(0.975, 2) * 0.5 / 40
    assert (row["seed_low"], row["seed_high"]) == pytest.approx((0.25 - half, 0.25 + half))
    assert row["low"] < row["seed_low"] + half / 2 and row["p"] > 0.001


def test_equal_runs_of_a_language_model_have_the_spread_of_rounded_losses() -> None:
    nats_N, tokens_N = np.linspace(90.0, 210.0, 30), np.full(30, 50.0)
    arms = [
        ArmResults(name, "ppl", (0, 1, 2), np.stack([factor * nats_N] * 3), tokens_N)
        for name, factor in (("a", 1.0), ("b", 1.1))
    ]
    spread = seed_spread(arms)
    assert spread is not None
    assert np.sqrt(spread.variance) == pytest.approx(np.finfo(np.float32).eps * 1.05 * 3.0 / 2)


def test_one_tied_arm_counts_as_a_spread_of_half_an_answer() -> None:
    """An arm whose seeds tie does not disagree with arms whose seeds differ by one answer."""
    right = [(30, 31), (28, 29), (26, 26), (33, 32)]
    arms = [
        ArmResults(
            str(n), "acc", (0, 1), np.stack([np.arange(40.0) < count for count in counts]) * 1.0, np.ones(40)
        )
        for n, counts in enumerate(right)
    ]
    spread = seed_spread(arms)
    assert spread is not None and spread.prior_df == math.inf
    assert spread.variance == pytest.approx(3 * 0.5 / 40**2 / 4)


@pytest.mark.parametrize("p", [[0.2], [0.01, 0.02, 0.02, 0.9, 0.012], list(np.linspace(0.0, 0.05, 12))])
def test_holm_equals_statsmodels(p: list[float]) -> None:
    assert holm(np.array(p)) == pytest.approx(multipletests(p, method="holm")[1])


def test_holm_skips_nan() -> None:
    assert holm(np.array([0.01, 0.04, np.nan, 0.03])) == pytest.approx(
        [0.03, 0.06, np.nan, 0.06], nan_ok=True
    )
    assert np.isnan(holm(np.array([np.nan]))).all() and len(holm(np.array([]))) == 0
