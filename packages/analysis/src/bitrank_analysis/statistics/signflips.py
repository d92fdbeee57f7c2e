"""Sign flips of documents, written as ratios over random subsets of them.

Under "the true log ratio is δ" a document's d − δT is as likely to be positive as negative. Flipping the signs of a subset A lifts the
sum over all documents exactly when A's own ratio R_A = Σ_A d / Σ_A T lies below δ. So the one-sided p of the sign-flip test against any
δ is the share of subsets with R_A ≤ δ, and the interval that inverts the test ends at two order statistics of R_A: the typical values of
Hartigan (1969), "Using subsample values as typical values", *JASA* 64, 1303–1317.

The test is exact for differences that are symmetric about δT, however unequal the documents are; two arms that are the same give such
differences. It needs no variance, which few documents of unequal length cannot estimate: most of the variance then comes from one or two.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bitrank_analysis.statistics.intervals import Floats, check_examples

SUBSETS = 19_999
_ALL = 14  # up to so many documents every subset is taken
_CHUNK = 2000


def subset_ratios(values_N: Floats, weights_N: Floats) -> tuple[Floats, float]:
    """Σ value / Σ weight over subsets (B,), sorted, and the least p that one side of the test can give: 1 / (B + 1).

    All 2ⁿ − 1 subsets of up to 14 documents, else :data:`SUBSETS` random ones, the same for every pair of arms. Raises
    :class:`~bitrank_analysis.AnalysisError` as :func:`~bitrank_analysis.statistics.intervals.check_examples` does.
    """
    check_examples(values_N, weights_N)
    sums_N2 = np.stack([values_N, weights_N], axis=1)
    chunks = []
    for members_BN in _subsets(len(values_N)):
        sums_B2 = members_BN.astype(np.float64) @ sums_N2
        sums_B2 = sums_B2[sums_B2[:, 1] > 0]  # the empty subset stands for the data as they are
        chunks.append(sums_B2[:, 0] / sums_B2[:, 1])
    ratios_B = np.sort(np.concatenate(chunks))
    return ratios_B, 1 / (len(ratios_B) + 1)


def _subsets(count: int) -> Iterator[NDArray[np.uint8]]:
    """Which documents belong to each subset, (B, N) at a time."""
    if count <= _ALL:
        numbers_B = np.arange(1, 2**count)
        yield ((numbers_B[:, None] >> np.arange(count)) & 1).astype(np.uint8)
        return
    generator = np.random.default_rng(0)
    for start in range(0, SUBSETS, _CHUNK):
        size = (min(_CHUNK, SUBSETS - start), count)
        yield generator.integers(0, 2, size=size, dtype=np.uint8)
