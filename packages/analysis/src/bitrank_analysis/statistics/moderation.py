"""Variation over seeds, estimated from all arms of a task together (moderated t).

Two or three seeds give little information about the spread of one arm: a t test with two degrees of freedom,
corrected over nine comparisons, would never reject. Arms of one task are trained alike, so their spreads are
similar unless the data show otherwise. The variance of each comparison is therefore shrunk towards the
variance pooled over arms, and the more the variances of the arms agree, the stronger is the shrinkage: the
moderated t of Smyth (2004), "Linear models and empirical Bayes methods for assessing differential expression
in microarray experiments", *Stat. Appl. Genet. Mol. Biol.* 3(1), 3. One collapsed run makes the variances
disagree; each comparison then keeps its own variance.

A seed's common effect on all arms cancels in their difference. It is removed if an F test shows that it
exists; otherwise its removal would spread one collapsed run over all arms of its seed.

Seeds of equal quality do not show that seeds have no effect: 24 right answers of 40 hide all spread below one
answer. No spread is therefore below half the step from one quality to the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from bitrank_analysis.metrics import metric_of
from bitrank_analysis.statistics.confidence import SeedError
from bitrank_analysis.statistics.examples import ArmResults
from bitrank_analysis.statistics.intervals import Floats

_FLOOR = 1e-5  # lower bound of a variance in the prior, relative to the mean
_SHOWN = 0.05  # p-value of a common effect of seeds below which it is removed
_FREE = 1e-6  # degrees of freedom of an arm that are rounding of none
_DECIMALS = 9  # of values of examples: later ones are rounding
_AGREE = 1e-6  # excess variance of log variances below which all arms share one variance


@dataclass(frozen=True)
class SeedSpread:
    """Variance of one run of an arm around the arm's mean, shared by all arms.

    ``prior_df`` is the weight of ``variance`` in observations, relative to a comparison's own variance
    (infinite: the variances of the arms agree). ``residual_df`` are the degrees of freedom of the estimate.
    """

    variance: float
    prior_df: float
    residual_df: float

    def error(self, contrasts_S: Floats, size: float) -> SeedError:
        """Error of the mean of per-seed contrasts (S,) of arms, S ≥ 2.

        ``size`` is the sum of the squared weights of the contrast.
        """
        own_df, prior = len(contrasts_S) - 1, size * self.variance
        if self.prior_df == inf:
            moderated, df = prior, self.residual_df
        else:
            own = float(contrasts_S.var(ddof=1))
            moderated = (self.prior_df * prior + own_df * own) / (self.prior_df + own_df)
            df = min(self.prior_df + own_df, self.residual_df)
        return SeedError(sqrt(moderated / len(contrasts_S)), df)


def seed_spread(arms: Iterable[ArmResults]) -> SeedSpread | None:
    """Spread over seeds of ``arms``; None if no arm has two seeds."""
    several = [arm for arm in arms if len(arm.seeds) > 1]
    if not several:
        return None
    quality_C = np.concatenate([arm.values_SN.sum(axis=1) / arm.weights_N.sum() for arm in several])
    arm_C = np.repeat(np.arange(len(several)), [len(arm.seeds) for arm in several])
    left_CC = _left(quality_C, arm_C, np.array([seed for arm in several for seed in arm.seeds]))
    residual_C, residual_df = left_CC @ quality_C, float(np.trace(left_CC))
    hidden = (_step(several) / 2) ** 2
    variance_A, df_A = _own(residual_C, left_CC, arm_C)
    prior_df, prior = _prior(np.maximum(variance_A, hidden), df_A)
    pooled = float((residual_C**2).sum()) / residual_df
    return SeedSpread(max(pooled if prior_df == inf else prior, hidden), prior_df, residual_df)


def _step(arms: list[ArmResults]) -> float:
    """Smallest step between qualities: one right answer more; of losses, their precision in 32 bits."""
    values = np.concatenate([arm.values_SN.ravel() for arm in arms])
    step = float(np.finfo(np.float32).eps) * float(np.abs(values).mean()) * arms[0].n
    if not metric_of(arms[0].metric).is_log:
        step = max(step, float(np.diff(np.unique(values.round(_DECIMALS))).min(initial=1.0)))
    return step / float(arms[0].weights_N.sum())


def _own(residual_C: Floats, left_CC: Floats, arm_C: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Variance and degrees of freedom (Satterthwaite) of each arm whose residuals are free to vary.

    Seeds that no other arm has explain an arm's runs in full if it shares at most one seed. Its residuals are
    then 0 whatever its spread is, so they are no evidence on it.
    """
    found = []
    for arm in range(arm_C.max() + 1):
        own_C = arm_C == arm
        block_SS = left_CC[np.ix_(own_C, own_C)]
        free = float(np.trace(block_SS))
        if free > _FREE:
            found.append((float((residual_C[own_C] ** 2).sum()) / free, free**2 / float((block_SS**2).sum())))
    variance_A, df_A = np.array(found).T
    return variance_A, df_A


def _left(quality_C: Floats, arm_C: NDArray[np.int64], seed_C: NDArray[np.int64]) -> Floats:
    """Projection (C, C) of qualities on their residuals; its diagonal is the degrees of freedom of each run.

    The model is quality = arm, or quality = arm + seed if seeds have a common effect.
    """
    _, block_C = np.unique(seed_C, return_inverse=True)
    arms_CA, seeds_CS = np.eye(arm_C.max() + 1)[arm_C], np.eye(block_C.max() + 1)[block_C]
    plain_CC, blocked_CC = _residual_maker(arms_CA), _residual_maker(np.hstack([arms_CA, seeds_CS]))
    left = float(np.trace(blocked_CC))
    spent = float(np.trace(plain_CC)) - left
    if left < 0.5 or spent < 0.5:
        return plain_CC
    rest = float(((blocked_CC @ quality_C) ** 2).sum())
    explained = float(((plain_CC @ quality_C) ** 2).sum()) - rest
    shown = rest > 0 and stats.f.sf(explained / spent / (rest / left), spent, left) < _SHOWN
    return blocked_CC if shown else plain_CC


def _residual_maker(design_CP: Floats) -> Floats:
    return np.eye(len(design_CP)) - design_CP @ np.linalg.pinv(design_CP)


def _prior(variance_A: Floats, df_A: Floats) -> tuple[float, float]:
    """Degrees of freedom and scale of the arms' scaled inverse χ² prior (Smyth 2004, section 6.2)."""
    if len(variance_A) < 2 or variance_A.mean() == 0.0:
        return inf, float(variance_A.mean())
    log_A = np.log(np.maximum(variance_A, _FLOOR * variance_A.mean()))
    log_A += np.log(df_A / 2) - special.digamma(df_A / 2)
    excess = float(log_A.var(ddof=1) - special.polygamma(1, df_A / 2).mean())
    if excess < _AGREE:
        return inf, float(variance_A.mean())
    half = float(np.exp(optimize.brentq(lambda log: special.polygamma(1, np.exp(log)) - excess, -10.0, 20.0)))
    return 2 * half, float(np.exp(log_A.mean() + special.digamma(half) - np.log(half)))
