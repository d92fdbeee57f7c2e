"""Comparison of candidates with baselines: differences, intervals, tests and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.statistics import accuracy, perplexity
from bitrank_analysis.statistics.confidence import Confidence, SeedError, of_bounded, of_documents
from bitrank_analysis.statistics.examples import Arm, common_seeds, load_arms
from bitrank_analysis.statistics.families import holm
from bitrank_analysis.statistics.intervals import Floats
from bitrank_analysis.statistics.moderation import SeedSpread, seed_spread
from bitrank_analysis.statistics.seeds import ONE_SEED
from bitrank_analysis.statistics.verdicts import verdict
from bitrank_analysis.study import Study

NAN = float("nan")
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
class _TestSettings:
    """Settings of a comparison; ``family`` is the number of rows that the correction covers."""

    alpha: float
    margins: tuple[float, float]
    spread: SeedSpread | None
    family: int


def compare(
    study: Study,
    task: str,
    baselines: Sequence[str] = ("B-FP", "B-Q4"),
    alpha: float = 0.05,
    margins: tuple[float, float] = (accuracy.MARGIN, perplexity.MARGIN),
) -> pd.DataFrame:
    """Compare every arm of ``task`` with each of ``baselines`` over their common seeds.

    Two baselines are compared with each other once. All rows form one family: ``p_holm`` and ``tost_p_holm``
    are corrected over it. Each task is a family by itself.

    ``difference`` is candidate − baseline, of accuracy (0–1) or of log-perplexity in nats (negative is
    better; ``ratio`` is its exponential). With several seeds, ``p``, ``low``, ``high`` and ``tost_p`` cover
    variation over both examples and seeds (:mod:`~bitrank_analysis.statistics.confidence`); with one seed,
    over examples alone. ``family_low`` and ``family_high`` are the interval at α divided by the number of
    rows, so that all such intervals hold simultaneously; one that excludes zero implies a verdict.
    ``seed_low`` and ``seed_high`` are the interval over seeds alone (NaN with one seed).

    ``discordant_gain`` and ``discordant_loss`` count the examples, summed over seeds, that only the candidate
    or only the baseline got right. ``least_significant`` is the smallest accuracy difference that could have
    been significant with this number of discordant pairs, before correction. ``detectable`` is the difference
    detected with 80 % power. ``tost_best_p`` is the TOST p-value at this amount of disagreement and a
    difference of 0; if it is not below α, the data cannot show equivalence.

    ``verdict`` is one of :mod:`~bitrank_analysis.statistics.verdicts`: better or worse if p_holm < α, as good
    as if tost_p_holm < α (also recorded in ``equivalent``, as both can hold), else unresolved. With one seed
    the verdict has a separate name.

    ``margins`` are the TOST margins: accuracy, and log ratio of perplexity. The table is empty, with a reason
    in ``attrs["notes"]``, if nothing can be paired. Raises :class:`AnalysisError` as :func:`load_arms` does.
    """
    arms = load_arms(study, task)
    table = compare_arms(arms, baselines, alpha, margins).assign(task=task)[COLUMNS]
    table.attrs["notes"] += _notes(list(arms), baselines, table, task, alpha)
    return table


def compare_arms(
    arms: Mapping[str, Arm],
    baselines: Sequence[str],
    alpha: float = 0.05,
    margins: tuple[float, float] = (accuracy.MARGIN, perplexity.MARGIN),
) -> pd.DataFrame:
    """:func:`compare` for arms that are already in memory; ``task`` stays empty."""
    pairs, notes = [], []
    for baseline, candidate in _pairs(list(arms), baselines):
        shared = common_seeds(arms[candidate], arms[baseline])
        if shared:
            pairs.append((arms[candidate], arms[baseline], shared))
        else:
            notes.append(f"{candidate} and {baseline} have no seed in common, so they are not compared.")
    test_settings = _TestSettings(alpha, margins, seed_spread(arms.values()), len(pairs))
    return _with_verdicts([_row(*pair, test_settings) for pair in pairs], notes, alpha)


def _pairs(configs: list[str], baselines: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (baseline, candidate); two baselines form one pair."""
    order = [baseline for baseline in baselines if baseline in configs]
    return [
        (base, config) for n, base in enumerate(order) for config in configs if config not in order[: n + 1]
    ]


def _row(
    candidate: Arm, baseline: Arm, shared: tuple[int, ...], test_settings: _TestSettings
) -> dict[str, object]:
    if candidate.n < 2:
        raise AnalysisError(
            f"{candidate.config} and {baseline.config} share one example; expected two or more to compare "
            "over"
        )
    gaps_SN = candidate.over(shared) - baseline.over(shared)
    per_seed_S = gaps_SN.sum(axis=1) / candidate.weights_N.sum()
    seeds = (
        test_settings.spread.error(per_seed_S, size=2.0) if test_settings.spread and len(shared) > 1 else None
    )
    row: dict[str, object] = dict.fromkeys(COLUMNS, NAN)
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
        half = float(stats.t.ppf(1 - test_settings.alpha / 2, seeds.df)) * seeds.error
        row |= {"seed_low": per_seed_S.mean() - half, "seed_high": per_seed_S.mean() + half}
    if candidate.metric == "acc":
        return row | _accuracy(candidate.over(shared), baseline.over(shared), seeds, test_settings)
    return row | _perplexity(gaps_SN.mean(axis=0), candidate.weights_N, seeds, test_settings)


def _accuracy(
    candidate_SN: Floats, baseline_SN: Floats, seeds: SeedError | None, test_settings: _TestSettings
) -> dict[str, object]:
    """McNemar and Newcombe with one seed; the padded normal and the error over seeds with several."""
    gaps_SN = candidate_SN - baseline_SN
    gain, loss = int((gaps_SN > 0).sum()), int((gaps_SN < 0).sum())
    row: dict[str, object] = {
        "discordant_gain": gain,
        "discordant_loss": loss,
        "margin": test_settings.margins[0],
    }
    row |= {"effect": gain / (gain + loss) - 0.5 if gain + loss else NAN, "effect_name": "Cohen's g"}
    if len(gaps_SN) == 1:
        return row | _one_seed_of_accuracy(
            accuracy.count_pairs(candidate_SN[0] > 0, baseline_SN[0] > 0), test_settings
        )
    return row | _both_sources(
        of_bounded(gaps_SN.mean(axis=0), seeds=seeds),
        test_settings,
        test_settings.margins[0],
        "normal over examples",
        seeds,
    )


def _one_seed_of_accuracy(pairs: accuracy.Paired, test_settings: _TestSettings) -> dict[str, object]:
    discordant, margin = pairs.gain + pairs.loss, test_settings.margins[0]
    low, high = accuracy.newcombe(pairs, test_settings.alpha)
    family_low, family_high = accuracy.newcombe(pairs, test_settings.alpha / test_settings.family)
    least = accuracy.smallest_significant(discordant, test_settings.alpha)
    return {
        "low": low, "high": high, "family_low": family_low, "family_high": family_high,
        "p": accuracy.mcnemar_exact(pairs), "test": "McNemar, exact",
        "detectable": accuracy.detectable(discordant / pairs.n, pairs.n, test_settings.alpha),
        "least_significant": NAN if least is None else least / pairs.n,
        "tost_p": accuracy.equivalence(pairs, margin),
        "tost_best_p": accuracy.best_equivalence(discordant, pairs.n, margin),
    }  # fmt: skip


def _perplexity(
    gaps_N: Floats, tokens_N: Floats, seeds: SeedError | None, test_settings: _TestSettings
) -> dict[str, object]:
    row = _both_sources(
        of_documents(gaps_N, tokens_N, seeds),
        test_settings,
        test_settings.margins[1],
        "sign flips of documents",
        seeds,
    )
    low, high = float(np.exp(row["low"])), float(np.exp(row["high"]))
    ratio = float(np.exp(gaps_N.sum() / tokens_N.sum()))
    row |= {"ratio": ratio, "ratio_low": low, "ratio_high": high}
    return row | {"effect": perplexity.effect_size(gaps_N, tokens_N), "effect_name": "d_z"}


def _both_sources(
    found: Confidence, test_settings: _TestSettings, margin: float, test: str, seeds: SeedError | None
) -> dict[str, Any]:
    low, high = found.interval(test_settings.alpha)
    family_low, family_high = found.interval(test_settings.alpha / test_settings.family)
    return {
        "low": low, "high": high, "family_low": family_low, "family_high": family_high, "p": found.p,
        "test": f"{test}, moderated t over seeds" if seeds else test, "detectable": found.detectable(),
        "tost_p": found.equivalence(margin), "tost_best_p": found.centred().equivalence(margin),
        "margin": margin,
    }  # fmt: skip


def _with_verdicts(rows: list[dict[str, object]], notes: list[str], alpha: float) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"task": object})
    table["p_holm"] = holm(table["p"].to_numpy(dtype=np.float64))
    table["tost_p_holm"] = holm(table["tost_p"].to_numpy(dtype=np.float64))
    table["equivalent"] = table["tost_p_holm"] < alpha
    wins = (table["difference"].astype(float) > 0) == (table["metric"] == "acc")
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
    if table.empty or table["metric"].iloc[0] != "ppl":
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
