"""Size and coverage of the tests and intervals of one comparison, by simulation.

Each observed rate is compared with the binomial interval (99.9 %) of the nominal rate for the number of
trials. McNemar's exact test and the exact sign flips are conservative, so only the upper limit applies to
them. The simulated arms are correlated, as two fine-tuned copies of one model are.
``test_family_calibration.py`` covers whole tables with seeds and Holm's correction.

Rates observed with 6,000 trials: McNemar rejects 3.9 % of true null hypotheses with 1,000 examples and 2.1 %
with 100. Newcombe covers 95.1 % and 94.9 % (1,000 examples), 95.4 % (200), 97.6 % (50). TOST at its margin
rejects 5.2 % (proportions).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from bitrank_analysis.statistics import accuracy
from bitrank_analysis.statistics.accuracy import Paired, count_pairs
from bitrank_analysis.statistics.confidence import of_documents
from bitrank_analysis.statistics.factorial import contrast
from bitrank_analysis.statistics.seeds import over_seeds
from scipy import stats


def expected(rate: float, trials: int) -> tuple[float, float]:
    """The 99.9 % interval of the observed share of ``trials`` for a true ``rate``."""
    low, high = stats.binom.interval(0.999, trials, rate)
    return low / trials, high / trials


def arms(
    generator: np.random.Generator, n: int, right: float, gap: float = 0.0, agree: float = 0.8
) -> tuple[np.ndarray, np.ndarray]:
    """Right answers of two correlated arms on n examples.

    The arms are right with probability ``right + gap`` and ``right``. With probability ``agree`` both use the
    same random draw.
    """
    one, two, shared = generator.random(n), generator.random(n), generator.random(n) < agree
    return one < right + gap, np.where(shared, one, two) < right


NOISES: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "documents": lambda generator, tokens: generator.normal(0, 0.03, len(tokens)),
    "tokens": lambda generator, tokens: generator.normal(0, 0.5, len(tokens)) / np.sqrt(tokens),
    "both": lambda generator, tokens: (
        generator.normal(0, 0.03, len(tokens)) + generator.normal(0, 0.5, len(tokens)) / np.sqrt(tokens)
    ),
    "heavy": lambda generator, tokens: 0.03 * generator.standard_t(3, len(tokens)),
}


def documents(
    generator: np.random.Generator, n: int, gap: float = 0.0, noise: str = "both", spread: float = 1.2
) -> tuple[np.ndarray, np.ndarray]:
    """Loss differences (nats) and token counts of n documents.

    ``spread`` is the standard deviation of log-lengths; at the default, one document can hold half the
    tokens.
    """
    tokens = np.maximum(np.rint(np.exp(generator.normal(np.log(900), spread, n))), 5)
    return (gap + NOISES[noise](generator, tokens)) * tokens, tokens


def rate(trial: Callable[[np.random.Generator], bool], trials: int) -> float:
    generator = np.random.default_rng(20261123)
    return float(np.mean([trial(generator) for _ in range(trials)]))


@pytest.mark.parametrize(("n", "right"), [(1000, 0.85), (100, 0.6)])
def test_mcnemar_size_is_at_most_alpha(n: int, right: float) -> None:
    found = rate(lambda g: accuracy.mcnemar_exact(count_pairs(*arms(g, n, right))) < 0.05, 2000)
    assert 0 < found <= expected(0.05, 2000)[1]


@pytest.mark.parametrize(("n", "right", "gap"), [(1000, 0.85, 0.0), (1000, 0.85, 0.03), (200, 0.6, 0.1)])
def test_newcombe_interval_has_nominal_coverage(n: int, right: float, gap: float) -> None:
    def covers(generator: np.random.Generator) -> bool:
        low, high = accuracy.newcombe(count_pairs(*arms(generator, n, right, gap)))
        return low <= gap <= high

    low, high = expected(0.95, 2000)
    assert low <= rate(covers, 2000) <= high


def test_equivalence_of_proportions_has_nominal_size_at_the_margin() -> None:
    found = rate(lambda g: accuracy.equivalence(count_pairs(*arms(g, 2000, 0.8, 0.03)), 0.03) < 0.05, 2000)
    low, high = expected(0.05, 2000)
    assert low <= found <= high


@pytest.mark.parametrize("noise", list(NOISES))
@pytest.mark.parametrize("n", [10, 30])
def test_size_over_few_unequal_documents_is_at_most_alpha(n: int, noise: str) -> None:
    """Student's test on the linearized ratio rejects 15.9 % here with 10 documents and 10.8 % with 30."""
    trials = 600
    found = rate(lambda g: of_documents(*documents(g, n, noise=noise)).p < 0.05, trials)
    assert 0 < found <= expected(0.05, trials)[1]


@pytest.mark.slow
@pytest.mark.parametrize("noise", list(NOISES))
@pytest.mark.parametrize("n", [6, 10, 30, 100])
def test_size_over_documents_is_at_most_alpha(n: int, noise: str) -> None:
    def outcome(generator: np.random.Generator) -> tuple[bool, bool]:
        found = of_documents(*documents(generator, n, noise=noise))
        return found.p < 0.05, found.p < 0.05 / 9

    trials = 6000
    generator = np.random.default_rng(8)
    at_five, at_holm = np.mean([outcome(generator) for _ in range(trials)], axis=0)
    assert at_five <= min(expected(0.05, trials)[1], 0.06)
    assert at_holm <= expected(0.05 / 9, trials)[1]


@pytest.mark.parametrize("n", [10, 30])
def test_intervals_over_documents_have_nominal_coverage(n: int) -> None:
    def covers(generator: np.random.Generator) -> bool:
        low, high = of_documents(*documents(generator, n, gap=0.05)).interval()
        return low <= 0.05 <= high

    trials = 600
    assert rate(covers, trials) >= expected(0.95, trials)[0]


def test_true_difference_over_documents_is_detected() -> None:
    """For comparison: Student's test detects 86.8 % at two to three times its nominal size.

    CR2 with the degrees of freedom of Bell and McCaffrey detects 41 %.
    """
    found = rate(lambda g: of_documents(*documents(g, 10, gap=0.045)).p < 0.05, 300)
    assert found > 0.8


@pytest.mark.parametrize("n", [10, 30])
def test_equivalence_of_perplexities_has_at_most_nominal_size_at_the_margin(n: int) -> None:
    trials = 600
    found = rate(lambda g: of_documents(*documents(g, n, 0.03)).equivalence(0.03) < 0.05, trials)
    assert 0 < found <= expected(0.05, trials)[1]


def test_true_equivalence_of_perplexities_is_detected() -> None:
    assert rate(lambda g: of_documents(*documents(g, 30, 0.0)).equivalence(0.03) < 0.05, 200) > 0.7


def test_interval_over_seeds_has_nominal_coverage() -> None:
    def covers(generator: np.random.Generator) -> bool:
        low, high = over_seeds(generator.normal(0.01, 0.02, 3))
        return low <= 0.01 <= high

    low, high = expected(0.95, 2000)
    assert low <= rate(covers, 2000) <= high


@pytest.mark.parametrize("effect", ["rank", "interaction"])
def test_factorial_effects_have_nominal_size(effect: str) -> None:
    def rejects(generator: np.random.Generator) -> bool:
        base = generator.random(500)
        four = np.stack(
            [np.where(generator.random(500) < 0.8, base, generator.random(500)) < 0.8 for _ in range(4)]
        ).astype(float)
        return contrast(four, np.ones(500), effect, bounded=True).p < 0.05

    low, high = expected(0.05, 2000)
    assert low <= rate(rejects, 2000) <= high


@pytest.mark.parametrize("effect", ["rank", "interaction"])
@pytest.mark.parametrize("n", [10, 30])
def test_factorial_effects_on_few_unequal_documents_have_at_most_nominal_size(n: int, effect: str) -> None:
    def rejects(generator: np.random.Generator) -> bool:
        _, tokens = documents(generator, n)
        losses_4N = np.stack([NOISES["both"](generator, tokens) * tokens for _ in range(4)])
        return contrast(losses_4N, tokens, effect, bounded=False).p < 0.05

    trials = 600
    assert 0 < rate(rejects, trials) <= expected(0.05, trials)[1]


def test_true_difference_of_proportions_is_detected() -> None:
    generator = np.random.default_rng(5)
    found = [
        accuracy.mcnemar_exact(count_pairs(*arms(generator, 1000, 0.85, 0.04))) < 0.05 for _ in range(300)
    ]
    assert np.mean(found) > 0.8
    assert accuracy.equivalence(Paired(800, 30, 30, 140), 0.02) < 0.05
