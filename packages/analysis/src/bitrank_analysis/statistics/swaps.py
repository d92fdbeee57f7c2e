"""Approximate randomization for metrics of a whole test set, such as BLEU and macro-F1.

If two arms are equal, the outputs of an example may be exchanged between them without changing the
distribution of their difference. The difference over random exchanges is therefore its distribution under
that hypothesis (Noreen, *Computer-Intensive Methods for Testing Hypotheses*, 1989; Riezler and Maxwell 2005
for machine translation). The test of equality is exact. Intervals and equivalence shift this distribution by
the observed difference; for unequal arms it is slightly wider than the error of the difference, so they are
conservative.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, hstack

from bitrank_analysis.corpus_scores import Score, rows_at_once
from bitrank_analysis.statistics.intervals import Floats
from bitrank_analysis.statistics.signflips import subsets

_EQUAL = 1e-12  # relative difference up to which two sums are equal, since their order of summation differs


@dataclass(frozen=True)
class CorpusCounts:
    """Counts (N, K) of two arms for each of S seeds, and the score of their sums over examples."""

    candidate: tuple[csr_array, ...]
    baseline: tuple[csr_array, ...]
    score: Score

    def difference(self, moved_BSK: Floats | float = 0.0) -> Floats:
        """Mean over seeds of candidate − baseline; ``moved_BSK`` is added to the sums of the candidate."""
        ours_SK, theirs_SK = _sums(self.candidate), _sums(self.baseline)
        return np.asarray((self.score(ours_SK + moved_BSK) - self.score(theirs_SK - moved_BSK)).mean(axis=-1))


def swapped_differences(counts: CorpusCounts) -> tuple[Floats, float]:
    """Sorted points observed − swapped difference (B,), and the smallest one-sided p-value 1 / (B + 1).

    An example is exchanged in all seeds together. Up to 14 examples all exchanges are enumerated; otherwise
    they are random, the same ones for every pair of arms.
    """
    observed = float(counts.difference())
    seeds = len(counts.candidate)
    pairs = zip(counts.baseline, counts.candidate, strict=True)
    change_NM = hstack([theirs - ours for theirs, ours in pairs], format="csr")
    count, width = change_NM.shape
    step = rows_at_once(width)
    chunks = []
    for members_BN in subsets(count):
        for start in range(0, len(members_BN), step):
            moved_BM = members_BN[start : start + step].astype(np.float64) @ change_NM
            # SciPy returns columns side by side; sums of rows side by side are added in another order.
            moved_BSK = np.ascontiguousarray(moved_BM).reshape(-1, seeds, width // seeds)
            chunks.append(observed - counts.difference(moved_BSK))
    points_B = np.sort(np.concatenate(chunks))
    # Exchanges that change nothing must count as ties, whatever the rounding.
    points_B[np.abs(points_B) <= _EQUAL * max(1.0, abs(observed))] = 0.0
    return points_B, 1 / (len(points_B) + 1)


def _sums(counts: tuple[csr_array, ...]) -> Floats:
    """Sums (S, K) over examples."""
    return np.stack([np.asarray(counts_NK.sum(axis=0), dtype=np.float64) for counts_NK in counts])
