"""Comparison of candidates with baselines: differences, intervals, tests and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.metrics import metric_of
from bitrank_analysis.statistics.examples import ArmResults, common_seeds, load_arms
from bitrank_analysis.statistics.families import holm
from bitrank_analysis.statistics.moderation import SeedSpread, seed_spread
from bitrank_analysis.statistics.paired import NAN, ComparisonSettings, Pair, paired_test
from bitrank_analysis.statistics.seeds import ONE_SEED
from bitrank_analysis.statistics.swaps import CorpusCounts
from bitrank_analysis.statistics.verdicts import verdict
from bitrank_analysis.study import Study

COLUMNS = [
    "task", "metric", "candidate", "baseline", "seeds", "n", "candidate_quality", "baseline_quality",
    "difference", "ratio", "low", "high",
    "ratio_low", "ratio_high", "family_low", "family_high", "seed_low", "seed_high", "p", "p_holm", "test",
    "effect", "effect_name",
    "discordant_gain", "discordant_loss", "least_significant", "detectable", "tost_p", "tost_p_holm",
    "tost_best_p", "margin", "verdict",
    "equivalent",
]  # fmt: skip


@dataclass(frozen=True)
class _Request:
    """Settings of a comparison; ``family`` is the number of rows that the correction covers."""

    alpha: float
    margin: float | None
    spread: SeedSpread | None
    family: int


def compare(
    study: Study,
    task: str,
    baselines: Sequence[str] = ("B-FP", "B-Q4"),
    alpha: float = 0.05,
    margin: float | None = None,
    metric: str | None = None,
) -> pd.DataFrame:
    """Compare every arm of ``task`` with each of ``baselines`` over their common seeds.

    Two baselines are compared with each other once. All rows form one family: ``p_holm`` and ``tost_p_holm``
    are corrected over it. Each task is a family by itself.

    ``difference`` is candidate − baseline of the metric, such as accuracy (0–1), or of its logarithm, such as
    log-perplexity in nats (``ratio`` is then its exponential). With several seeds, ``p``, ``low``, ``high``
    and ``tost_p`` cover variation over both examples and seeds
    (:mod:`~bitrank_analysis.statistics.confidence`); with one seed, over examples alone. ``family_low``
    and ``family_high`` are the interval at α divided by the number of rows, so that all such intervals hold
    simultaneously; with several seeds one that excludes zero implies a verdict, with one seed the tests may
    be of another kind (such as McNemar's beside Newcombe's interval) and can disagree near zero.
    ``seed_low`` and ``seed_high`` are the interval over seeds alone (NaN with one seed).

    ``discordant_gain`` and ``discordant_loss`` count the examples, summed over seeds, that only the candidate
    or only the baseline got right. ``least_significant`` is the smallest accuracy difference that could have
    been significant with this number of discordant pairs, before correction. ``detectable`` is the difference
    detected with 80 % power. ``tost_best_p`` is the TOST p-value at this amount of disagreement and a
    difference of 0; if it is not below α, the data cannot show equivalence.

    ``verdict`` is one of :mod:`~bitrank_analysis.statistics.verdicts`: better or worse if p_holm < α, as good
    as if tost_p_holm < α (also recorded in ``equivalent``, as both can hold), else unresolved. With one seed
    the verdict has a separate name.

    ``margin`` is the TOST margin in the unit of ``difference``; None is the metric's own. ``metric`` is the
    compared metric; None is the one that the runs are ranked by. The table is empty,
    with a reason in ``attrs["notes"]``, if nothing can be paired. Raises :class:`AnalysisError` as
    :func:`load_arms` does.
    """
    arms = load_arms(study, task, metric)
    table = compare_arms(arms, baselines, alpha, margin).assign(task=task)[COLUMNS]
    table.attrs["notes"] += _notes(list(arms), baselines, table, task, alpha)
    return table


def compare_arms(
    arms: Mapping[str, ArmResults],
    baselines: Sequence[str],
    alpha: float = 0.05,
    margin: float | None = None,
) -> pd.DataFrame:
    """:func:`compare` for arms that are already in memory; ``task`` stays empty."""
    pairs = [(candidate, baseline) for baseline, candidate in _pairs(list(arms), baselines)]
    return compare_pairs(arms, pairs, alpha, margin)


def compare_pairs(
    arms: Mapping[str, ArmResults],
    named: Sequence[tuple[str, str]],
    alpha: float = 0.05,
    margin: float | None = None,
) -> pd.DataFrame:
    """Compare the pairs (candidate, baseline) of ``named``, which are one family of tests.

    Columns are those of :func:`compare`; ``task`` stays empty. Pairs without a common seed have no row.
    """
    pairs, notes = [], []
    for candidate, baseline in named:
        shared = common_seeds(arms[candidate], arms[baseline])
        if shared:
            pairs.append((arms[candidate], arms[baseline], shared))
        else:
            notes.append(f"{candidate} and {baseline} have no seed in common, so they are not compared.")
    request = _Request(alpha, margin, seed_spread(arms.values()), len(pairs))
    return _with_verdicts([_row(*pair, request) for pair in pairs], notes, alpha)


def _pairs(configs: list[str], baselines: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (baseline, candidate); two baselines form one pair."""
    order = [baseline for baseline in baselines if baseline in configs]
    return [
        (base, config) for n, base in enumerate(order) for config in configs if config not in order[: n + 1]
    ]


def _row(
    candidate: ArmResults, baseline: ArmResults, shared: tuple[int, ...], request: _Request
) -> dict[str, object]:
    if candidate.n < 2:
        raise AnalysisError(
            f"{candidate.config} and {baseline.config} share one example; expected two or more to compare "
            "over"
        )
    gaps_SN = candidate.over(shared) - baseline.over(shared)
    per_seed_S = gaps_SN.sum(axis=1) / candidate.weights_N.sum()
    seeds = request.spread.error(per_seed_S, size=2.0) if request.spread and len(shared) > 1 else None
    row: dict[str, Any] = dict.fromkeys(COLUMNS, NAN)
    row |= {
        "metric": candidate.metric,
        "candidate": candidate.config,
        "baseline": baseline.config,
        "seeds": len(shared),
        "n": candidate.n,
    }
    row |= {"candidate_quality": candidate.quality(shared), "baseline_quality": baseline.quality(shared)}
    row |= {"difference": float(per_seed_S.mean())}
    if seeds:
        half = float(stats.t.ppf(1 - request.alpha / 2, seeds.df)) * seeds.error
        row |= {"seed_low": per_seed_S.mean() - half, "seed_high": per_seed_S.mean() + half}
    metric = metric_of(candidate.metric)
    margin = metric.margin if request.margin is None else request.margin
    settings = ComparisonSettings(request.alpha, margin, request.family)
    counts = _counts(candidate, baseline, shared)
    pair = Pair(candidate.over(shared), baseline.over(shared), candidate.weights_N, seeds, counts)
    row |= paired_test(metric.test).row(pair, settings)
    return row | _ratio(pair, row) if metric.is_log else row


def _counts(candidate: ArmResults, baseline: ArmResults, shared: tuple[int, ...]) -> CorpusCounts | None:
    ours, theirs = candidate.counts_over(shared), baseline.counts_over(shared)
    score = metric_of(candidate.metric).examples.score
    if ours is None or theirs is None or score is None:
        return None
    return CorpusCounts(ours, theirs, score)


def _ratio(pair: Pair, row: dict[str, Any]) -> dict[str, float]:
    """The difference of logarithms and its interval as ratios."""
    ratio = float(np.exp(pair.gaps_SN.mean(axis=0).sum() / pair.weights_N.sum()))
    return {"ratio": ratio, "ratio_low": float(np.exp(row["low"])), "ratio_high": float(np.exp(row["high"]))}


def _with_verdicts(rows: list[dict[str, object]], notes: list[str], alpha: float) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"task": object})
    table["p_holm"] = holm(table["p"].to_numpy(dtype=np.float64))
    table["tost_p_holm"] = holm(table["tost_p"].to_numpy(dtype=np.float64))
    table["equivalent"] = table["tost_p_holm"] < alpha
    higher_is_better = table["metric"].map(lambda key: metric_of(key).higher_is_better).astype(bool)
    wins = (table["difference"].astype(float) > 0) == higher_is_better
    outcomes = zip(table["p_holm"] < alpha, table["equivalent"], wins, table["seeds"], strict=True)
    table["verdict"] = pd.Series([verdict(*row) for row in outcomes], dtype=object)
    table.attrs["notes"] = notes
    return table


def _notes(
    configs: list[str], baselines: Sequence[str], table: pd.DataFrame, task: str, alpha: float
) -> list[str]:
    notes = [f"Baseline {name} has no finished run of {task}." for name in baselines if name not in configs]
    if len(configs) == 1:
        notes.append(f"Only {configs[0]} finished {task}; there is nothing to compare it with.")
    if (table["seeds"] == 1).any():
        notes.append(ONE_SEED)
    return [*notes, *_too_few_documents(table, task, alpha)]


def _too_few_documents(table: pd.DataFrame, task: str, alpha: float) -> list[str]:
    """A note if sign flips allow no verdict: n documents give p ≥ 2 / 2ⁿ before Holm's correction."""
    if table.empty or paired_test(metric_of(table["metric"].iloc[0]).test).bounded:
        return []
    count, family = int(table["n"].iloc[0]), len(table)
    if 2 * family / 2**count < alpha:
        return []
    least = next(n for n in range(1, 64) if 2 * family / 2**n < alpha)
    return [
        f"The {count} test documents of {task} are too few for a verdict over {family} comparisons, whatever "
        "the arms are worth: "
        f"{least} is the least."
    ]
