"""Candidates against baselines: the table that says which arm won, by how much, and how sure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.statistics import accuracy, perplexity, seeds
from bitrank_analysis.statistics.examples import Arm, common_seeds, load_arms
from bitrank_analysis.statistics.families import holm
from bitrank_analysis.statistics.intervals import Estimate, Floats, padded_estimate, t_estimate
from bitrank_analysis.study import Study

NAN = float("nan")
COLUMNS = [
    "task", "metric", "candidate", "baseline", "seeds", "n", "candidate_quality", "baseline_quality", "difference", "ratio", "low", "high",
    "ratio_low", "ratio_high", "boot_low", "boot_high", "seed_low", "seed_high", "p", "p_holm", "test", "effect", "effect_name",
    "discordant_gain", "discordant_loss", "least_significant", "detectable", "tost_p", "tost_p_holm", "tost_best_p", "margin", "verdict",
    "equivalent",
]  # fmt: skip


def compare(
    study: Study,
    task: str,
    baselines: Sequence[str] = ("B-FP", "B-Q4"),
    alpha: float = 0.05,
    margins: tuple[float, float] = (accuracy.MARGIN, perplexity.MARGIN),
) -> pd.DataFrame:
    """Every arm of ``task`` against each of ``baselines``, over the seeds that both have; two baselines meet once. All rows are one
    family: ``p_holm`` and ``tost_p_holm`` are corrected over it.

    ``difference`` is candidate − baseline: of accuracy (0–1), or of log-perplexity in nats (``ratio`` = exp of it; below zero is
    better). ``low high`` are its interval over examples or documents, ``boot_low boot_high`` the BCa one (perplexity), ``seed_low
    seed_high`` the one over seeds (NaN with one). ``discordant_gain`` and ``_loss`` count examples, summed over seeds, that only the
    candidate or only the baseline got right. ``least_significant`` is the smallest accuracy difference that could have been significant
    with as many discordant pairs, before correction; ``detectable`` the one found with 80 % power; ``tost_best_p`` the p that TOST would
    give with this much disagreement and no difference at all: where it is not below α, "as good as" is out of reach. ``verdict``:
    better or worse when p_holm < α, as good as when tost_p_holm < α (also said in ``equivalent``, as both can hold), else unresolved.
    With several seeds a verdict needs the interval over seeds as well: it must leave out zero, or lie within the margin.

    ``margins`` are those of TOST: accuracy, and log ratio of perplexity. Empty with a reason in ``attrs["notes"]`` when nothing can be
    paired. Raises :class:`AnalysisError` as :func:`load_arms` does.
    """
    arms = load_arms(study, task)
    rows, notes = [], []
    for baseline, candidate in _pairs(list(arms), baselines):
        shared = common_seeds(arms[candidate], arms[baseline])
        if shared:
            rows.append({**_row(arms[candidate], arms[baseline], shared, alpha, margins), "task": task})
        else:
            notes.append(f"{candidate} and {baseline} have no seed in common, so they are not compared.")
    return _judged(rows, notes + _notes(list(arms), baselines, rows, task), alpha)


def _pairs(configs: list[str], baselines: Sequence[str]) -> list[tuple[str, str]]:
    """(baseline, candidate), without a baseline against an earlier one a second time."""
    order = [baseline for baseline in baselines if baseline in configs]
    return [(base, config) for n, base in enumerate(order) for config in configs if config not in order[: n + 1]]


def _row(candidate: Arm, baseline: Arm, shared: tuple[int, ...], alpha: float, margins: tuple[float, float]) -> dict[str, object]:
    if candidate.n < 2:
        raise AnalysisError(f"{candidate.config} and {baseline.config} share one example; expected two or more to compare over")
    gaps_SN = candidate.over(shared) - baseline.over(shared)
    seed_low, seed_high = seeds.over_seeds(gaps_SN.sum(axis=1) / candidate.weights_N.sum(), alpha)
    row: dict[str, object] = dict.fromkeys(COLUMNS, NAN)
    row |= {"metric": candidate.metric, "candidate": candidate.config, "baseline": baseline.config, "seeds": len(shared), "n": candidate.n}
    row |= {"candidate_quality": candidate.quality(shared), "baseline_quality": baseline.quality(shared)}
    row |= {"seed_low": seed_low, "seed_high": seed_high}
    if candidate.metric == "acc":
        return row | _accuracy(candidate.over(shared), baseline.over(shared), alpha, margins[0])
    return row | _perplexity(gaps_SN.mean(axis=0), candidate.weights_N, alpha, margins[1])


def _accuracy(candidate_SN: Floats, baseline_SN: Floats, alpha: float, margin: float) -> dict[str, object]:
    """McNemar and Newcombe with one seed; with several their like over seed-averaged differences."""
    gaps_SN = candidate_SN - baseline_SN
    count, n = gaps_SN.shape
    gain, loss = int((gaps_SN > 0).sum()), int((gaps_SN < 0).sum())
    row: dict[str, object] = {"difference": float(gaps_SN.mean()), "discordant_gain": gain, "discordant_loss": loss, "margin": margin}
    row |= {"effect": gain / (gain + loss) - 0.5 if gain + loss else NAN, "effect_name": "Cohen's g"}
    if count == 1:
        pairs = accuracy.count_pairs(candidate_SN[0] > 0, baseline_SN[0] > 0)
        low, high = accuracy.newcombe(pairs, alpha)
        least = accuracy.smallest_significant(gain + loss, alpha)
        return row | {
            "low": low, "high": high, "p": accuracy.mcnemar_exact(pairs), "test": "McNemar, exact",
            "detectable": accuracy.detectable((gain + loss) / n, n, alpha), "tost_p": accuracy.equivalence(pairs, margin),
            "tost_best_p": accuracy.best_equivalence(gain + loss, n, margin), "least_significant": NAN if least is None else least / n,
        }  # fmt: skip
    mean_N, found = gaps_SN.mean(axis=0), padded_estimate(gaps_SN.mean(axis=0), alpha)
    share = float((mean_N**2).mean())  # the second moment takes the place of the share of discordant pairs, which it is with one seed
    return row | {
        "low": found.low, "high": found.high, "p": seeds.sign_flip(gaps_SN.sum(axis=0).round().astype(np.int64)),
        "test": "sign flips of seed means, exact", "detectable": accuracy.detectable(share, n, alpha),
        "tost_p": seeds.equivalence(mean_N, margin), "tost_best_p": seeds.equivalence(mean_N - mean_N.mean(), margin),
    }  # fmt: skip


def _perplexity(gaps_N: Floats, tokens_N: Floats, alpha: float, margin: float) -> dict[str, object]:
    found: Estimate = t_estimate(gaps_N, tokens_N, alpha)
    boot_low, boot_high = perplexity.bca(gaps_N, tokens_N, alpha)
    return {
        "difference": found.value, "low": found.low, "high": found.high, "boot_low": boot_low, "boot_high": boot_high,
        "ratio": float(np.exp(found.value)), "ratio_low": float(np.exp(found.low)), "ratio_high": float(np.exp(found.high)), "p": found.p,
        "test": "paired t over documents", "effect": perplexity.effect_size(gaps_N, tokens_N), "effect_name": "d_z",
        "detectable": perplexity.detectable(gaps_N, tokens_N, alpha), "tost_p": perplexity.equivalence(gaps_N, tokens_N, margin),
        "margin": margin, "tost_best_p": perplexity.best_equivalence(gaps_N, tokens_N, margin),
    }  # fmt: skip


def _judged(rows: list[dict[str, object]], notes: list[str], alpha: float) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["p_holm"] = holm(table["p"].to_numpy(dtype=np.float64))
    table["tost_p_holm"] = holm(table["tost_p"].to_numpy(dtype=np.float64))
    low, high, margin = (table[column].astype(float) for column in ("seed_low", "seed_high", "margin"))
    differs = (table["p_holm"] < alpha) & seeds.agree(low, high)
    table["equivalent"] = (table["tost_p_holm"] < alpha) & seeds.agree(low, high, margin)
    wins = (table["difference"].astype(float) > 0) == (table["metric"] == "acc")
    verdicts = np.where(differs, np.where(wins, "better", "worse"), np.where(table["equivalent"], "as good as", "unresolved"))
    table["verdict"] = verdicts.astype(object)
    table.attrs["notes"] = notes
    return table


def _notes(configs: list[str], baselines: Sequence[str], rows: list[dict[str, object]], task: str) -> list[str]:
    notes = [f"Baseline {name} has no finished run of {task}." for name in baselines if name not in configs]
    if len(configs) == 1:
        notes.append(f"Only {configs[0]} finished {task}; there is nothing to compare it with.")
    if any(row["seeds"] == 1 for row in rows):
        notes.append(seeds.ONE_SEED)
    return notes
