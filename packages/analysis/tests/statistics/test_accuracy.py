"""Paired proportions against published examples, statsmodels and each other."""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitrank_analysis import AnalysisError, load_study, open_store
from bitrank_analysis.evidence import gather
from bitrank_analysis.report.verdict import verdict
from bitrank_analysis.statistics.accuracy import (
    Paired,
    best_equivalence,
    count_pairs,
    detectable,
    equivalence,
    mcnemar_exact,
    newcombe,
    smallest_significant,
    tango_score,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

tables = st.builds(Paired, *[st.integers(0, 60)] * 4).filter(lambda pairs: pairs.n > 1)


@pytest.mark.parametrize(
    ("pairs", "low", "high"),
    [
        (Paired(36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe (1998), Stat. Med. 17: 2635-2650, worked example
        # Fagerland, Lydersen & Laake (2014), Stat. Med. 33: 2850-2875; data of Bentur (2009)
        (Paired(1, 1, 7, 12), -0.507, -0.026),
        # R package contingencytables, chapter 8; data of Cavo (2012)
        (Paired(59, 6, 16, 80), -0.1186, -0.0046),
    ],
)
def test_newcombe_gives_the_published_intervals(pairs: Paired, low: float, high: float) -> None:
    digits = len(str(low).split(".")[1])
    assert [round(limit, digits) for limit in newcombe(pairs)] == [low, high]


def test_tango_gives_the_published_results() -> None:
    # Tango (1998), Stat. Med. 17: 891-908: lenses of 44 patients, margin 0.1, Z = 1.709, p = 0.044.
    lenses = Paired(43, 0, 1, 0)
    assert round(tango_score(lenses, -0.1), 3) == 1.709
    assert round(equivalence(lenses, 0.1), 3) == 0.044
    # Fagerland et al. (2014): Tango's score interval for Bentur's data is -0.517 to -0.026.
    airway, z = Paired(1, 1, 7, 12), stats.norm.ppf(0.975)
    limits = [
        optimize.brentq(lambda d, s=s: tango_score(airway, d) - s * z, *at)
        for s, at in ((1, (-0.9, -0.3)), (-1, (-0.28, 0.5)))
    ]
    assert [round(limit, 3) for limit in limits] == [-0.517, -0.026]


@given(tables)
def test_tango_score_at_zero_equals_uncorrected_mcnemar(pairs: Paired) -> None:
    discordant = pairs.gain + pairs.loss
    expected = (pairs.gain - pairs.loss) / sqrt(discordant) if discordant else 0.0
    assert tango_score(pairs, 0.0) == pytest.approx(expected, abs=1e-9)


@given(tables)
def test_newcombe_contains_the_difference_and_is_antisymmetric(pairs: Paired) -> None:
    low, high = newcombe(pairs)
    assert -1 <= low <= pairs.difference <= high <= 1 and low < high
    assert newcombe(Paired(pairs.both, pairs.loss, pairs.gain, pairs.neither)) == pytest.approx((-high, -low))


@given(tables)
def test_mcnemar_equals_the_binomial_test_of_discordant_pairs(pairs: Paired) -> None:
    discordant = pairs.gain + pairs.loss
    assert mcnemar_exact(pairs) == pytest.approx(
        stats.binomtest(pairs.gain, discordant).pvalue if discordant else 1.0
    )


@given(tables, st.floats(0.02, 0.5))
def test_equivalence_is_symmetric_and_monotone_in_the_margin(pairs: Paired, margin: float) -> None:
    p = equivalence(pairs, margin)
    assert 0 <= p <= 1
    assert equivalence(Paired(pairs.both, pairs.loss, pairs.gain, pairs.neither), margin) == pytest.approx(p)
    assert equivalence(pairs, margin * 1.5) <= p + 1e-12


def test_no_discordant_pairs_give_p_one_and_an_interval_of_positive_width() -> None:
    identical = Paired(80, 0, 0, 20)
    low, high = newcombe(identical)
    assert mcnemar_exact(identical) == 1.0 and low == pytest.approx(-high) and 0 < high < 0.05
    # 100 examples cannot show equivalence within ±1 point.
    assert equivalence(Paired(800, 0, 0, 200), 0.01) < 0.05 < equivalence(Paired(80, 0, 0, 20), 0.01)


def test_best_equivalence_is_that_of_balanced_discordant_pairs() -> None:
    assert best_equivalence(170, 1000, 0.01) > 0.2 and best_equivalence(20, 1000, 0.01) < 0.05
    assert best_equivalence(11, 100, 0.1) == equivalence(Paired(89, 6, 5, 0), 0.1)


@pytest.mark.parametrize(("discordant", "least"), [(0, None), (5, None), (6, 6), (9, 7), (10, 8), (100, 22)])
def test_smallest_significant_difference_agrees_with_the_binomial_test(
    discordant: int, least: int | None
) -> None:
    assert smallest_significant(discordant) == least
    for gap in range(discordant % 2, discordant + 1, 2):
        p = stats.binomtest((discordant + gap) // 2, discordant).pvalue if discordant else 1.0
        assert (p < 0.05) == (least is not None and gap >= least)


def test_detectable_difference_is_found_with_the_stated_power() -> None:
    share, n = 0.1, 1000
    delta = detectable(share, n)
    gains, losses = (share + delta) / 2, (share - delta) / 2
    counts = np.random.default_rng(0).multinomial(n, [gains, losses, 1 - share], size=2000)
    z = (counts[:, 0] - counts[:, 1]) / np.sqrt(counts[:, 0] + counts[:, 1])
    assert np.mean(np.abs(z) > stats.norm.ppf(0.975)) == pytest.approx(0.8, abs=0.03)
    assert detectable(0.1, 4000) < delta < detectable(0.2, n)


def test_detectable_difference_with_few_discordant_pairs() -> None:
    # If all discordant pairs favour one arm, about (1.96 + 0.84)² = 7.85 of them are needed, for any observed
    # number.
    assert detectable(0.0, 1000) == pytest.approx(0.00785, abs=5e-5)
    assert detectable(0.002, 1000) == pytest.approx(detectable(0.0, 1000))
    assert detectable(0.1, 3) == 1.0


def test_count_pairs_counts_the_four_outcomes() -> None:
    right = np.array([[1, 1, 0, 0, 1], [1, 0, 1, 0, 0]], dtype=bool)
    assert count_pairs(right[0], right[1]) == Paired(both=1, gain=2, loss=1, neither=1)
    with pytest.raises(AnalysisError, match="expected the same examples for both arms, got 5 and 4"):
        count_pairs(right[0], right[1][:4])
    with pytest.raises(AnalysisError, match="margin between 0 and 1, got 0"):
        equivalence(Paired(1, 1, 1, 1), 0)


@pytest.mark.parametrize(
    ("share", "count", "points"), [(0.03, 10_000, 0.49), (0.115, 10_000, 0.95), (0.115, 9_390, 0.98)]
)
def test_a_report_on_ten_thousand_examples_detects_less_than_one_point(
    share: float, count: int, points: float, maker: Any, tmp_path: Path
) -> None:
    """Shares of discordant answers of MultiEmo and QA-Wikidata, and Connor's formula, of ``docs/data.md``."""
    discordant = round(share * count)
    both = [number % 7 != 0 for number in range(count - discordant)]
    maker.classifier("B-FP", [*both, *(number % 2 == 0 for number in range(discordant))])
    maker.classifier("B-Q4", [*both, *(number % 2 == 1 for number in range(discordant))])
    report = gather(load_study(open_store(str(tmp_path))), "movies")
    row = report.comparisons.iloc[0]
    assert row["n"] == count and row["discordant_gain"] + row["discordant_loss"] == discordant
    found = float(row["detectable"])
    assert found < 0.01 and 100 * found == pytest.approx(points, abs=0.005)
    needed = 1.959964 * sqrt(discordant / count) + 0.841621 * sqrt(discordant / count - found**2)
    assert found * sqrt(count) == pytest.approx(needed, rel=1e-5)
    said = f"with the {count:,} examples of movies, a true difference of {100 * found:.1f} points of accuracy"
    assert said in verdict([report])[-1]
