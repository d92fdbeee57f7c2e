"""Sign-flip test over documents, computed from ratios over random subsets.

Under the hypothesis that the true log ratio is δ, d − δT of a document is equally likely to be positive or
negative. Flipping the signs of a subset A increases the sum over all documents exactly if the subset's ratio
R_A = Σ_A d / Σ_A T is below δ. The one-sided p-value for any δ is therefore the share of subsets with R_A ≤
δ, and the interval that inverts the test ends at two order statistics of R_A: the typical values of Hartigan
(1969), "Using subsample values as typical values", *JASA* 64, 1303–1317.

The test is exact for differences that are symmetric about δT, for documents of any lengths; two equal arms
give such differences. It needs no estimate of the variance, which is unreliable for few documents of unequal
length: one or two of them then contribute most of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bitrank_analysis.statistics.intervals import Floats, check_examples

SUBSETS = 19_999
_ALL = 14  # largest number of documents for which every subset is enumerated
_CHUNK = 2000


def subset_ratios(values_N: Floats, weights_N: Floats) -> tuple[Floats, float]:
    """Return sorted ratios Σ value / Σ weight over subsets, (B,), and the smallest one-sided p-value.

    The smallest p-value is 1 / (B + 1). Up to 14 documents, all 2ⁿ − 1 subsets are used; otherwise
    :data:`SUBSETS` random ones, the same for every pair of arms. Raises
    :class:`~bitrank_analysis.AnalysisError` as :func:`~bitrank_analysis.statistics.intervals.check_examples`
    does.
    """
    check_examples(values_N, weights_N)
    sums_N2 = np.stack([values_N, weights_N], axis=1)
    chunks = []
    for members_BN in subsets(len(values_N)):
        sums_B2 = members_BN.astype(np.float64) @ sums_N2
        sums_B2 = sums_B2[
            sums_B2[:, 1] > 0
        ]  # the empty subset has no ratio; it is the observed data, counted in 1 / (B + 1)
        chunks.append(sums_B2[:, 0] / sums_B2[:, 1])
    ratios_B = np.sort(np.concatenate(chunks))
    return ratios_B, 1 / (len(ratios_B) + 1)


def subsets(count: int) -> Iterator[NDArray[np.uint8]]:
    """Masks (B, N) of the documents in each subset, in chunks: all but the empty one, or random ones."""
    if count <= _ALL:
        numbers_B = np.arange(1, 2**count)
        yield ((numbers_B[:, None] >> np.arange(count)) & 1).astype(np.uint8)
        return
    generator = np.random.default_rng(0)
    for start in range(0, SUBSETS, _CHUNK):
        size = (min(_CHUNK, SUBSETS - start), count)
        yield generator.integers(0, 2, size=size, dtype=np.uint8)
