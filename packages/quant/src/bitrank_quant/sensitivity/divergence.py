"""Kullback-Leibler divergence, in nats per position, of a changed model's predictions from the original's.

If the original model's probabilities p are right, D(p ‖ q) is the expected loss that the change adds, over
all labels that could occur (Kullback and Leibler 1951). The loss on the observed labels also contains a term
of first order in the change. On a few thousand tokens that term is mostly noise, has either sign, and
dominates for small errors. The divergence is of second order, like the Fisher form that predicts it, and
never negative.

Only the :data:`LIKELIEST` classes of the original model are stored, and all others are merged into one. The
result is a lower bound, since merging classes can only lose divergence, in a thousandth of the memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bitrank_quant.off_mps import off_mps

LIKELIEST = 64
# Logits processed together: 8 MiB in fp32, so that intermediate results stay in the CPU cache.
_BLOCK = 2**21


@dataclass(frozen=True)
class TopPredictions:
    """Top-K predictions of a model at N positions.

    ``ids_NK`` are the likeliest classes, ``logp_NK`` their log-probabilities in fp64 (on the CPU for a model
    on MPS), ``classes`` the total number of classes.
    """

    ids_NK: Tensor
    logp_NK: Tensor
    classes: int

    def at(self, rows: slice) -> TopPredictions:
        """Return the predictions at the positions ``rows``."""
        return TopPredictions(self.ids_NK[rows], self.logp_NK[rows], self.classes)


@dataclass(frozen=True)
class Divergence:
    """The divergence of a changed model by batch: ``sums_B`` in nats over ``counts_B`` positions."""

    sums_B: tuple[float, ...]
    counts_B: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Nats per position."""
        return math.fsum(self.sums_B) / sum(self.counts_B)

    def minus(self, other: Divergence) -> tuple[float, float]:
        """The difference of the means of two changes on the same batches, and its standard error.

        The error is that of a ratio of sums over batches drawn independently (Cochran 1977, equation 2.46);
        infinite for a single batch. Raises ``ValueError`` for other batches.
        """
        if self.counts_B != other.counts_B:
            raise ValueError("divergences on different batches have no paired difference")
        batches, positions = len(self.counts_B), sum(self.counts_B)
        difference = self.mean - other.mean
        if batches < 2:
            return difference, math.inf
        triples = zip(self.sums_B, other.sums_B, self.counts_B, strict=True)
        squares = math.fsum((one - two - difference * count) ** 2 for one, two, count in triples)
        return difference, math.sqrt(batches / (batches - 1) * squares) / positions


def top_predictions(logits_NC: Tensor) -> TopPredictions:
    """Reduce ``logits_NC`` (positions, classes) to the :data:`LIKELIEST` classes of each position."""
    ids, logp = [], []
    for rows in _blocks(logits_NC):
        some_NC = logits_NC[rows].float()
        ids.append(some_NC.topk(min(LIKELIEST, some_NC.shape[1]), dim=1).indices)
        logp.append(_log_probabilities(some_NC, ids[-1]))
    return TopPredictions(torch.cat(ids), torch.cat(logp), logits_NC.shape[1])


def loss_and_divergence(kept: TopPredictions, logits_NC: Tensor, labels_N: Tensor) -> tuple[float, float]:
    """Cross entropy on ``labels_N`` and divergence from ``kept``: nats, summed over labels that are ≥ 0.

    Both share one log-normaliser: over 49,000 classes it costs more than everything else.
    """
    loss = diverged = 0.0
    for rows in _blocks(logits_NC):
        counts_N, known = (labels_N[rows] >= 0).to(kept.logp_NK.device), kept.at(rows)
        asked_NK = torch.cat([known.ids_NK, labels_N[rows].clamp_min(0)[:, None]], dim=1)
        logq_NK = _log_probabilities(logits_NC[rows].float(), asked_NK)
        loss -= float(logq_NK[counts_N, -1].sum())
        diverged += float(divergence(known, logq_NK[:, :-1])[counts_N].sum())
    return loss, diverged


def divergence(kept: TopPredictions, logq_NK: Tensor) -> Tensor:
    """D(p ‖ q) in nats at each of N positions, (N,).

    ``kept`` gives p, and ``logq_NK`` the log-probabilities of the same classes under q.
    """
    p_NK = kept.logp_NK.exp()
    total_N = (p_NK * (kept.logp_NK - logq_NK)).sum(1)
    if kept.ids_NK.shape[1] == kept.classes:
        return total_N + logq_NK.logsumexp(1) - kept.logp_NK.logsumexp(1)
    # The merged class gets 1 minus the sum of the others instead of a sum over logits: rounding errors of the
    # normaliser then cancel to first order.
    rest_p_N, rest_q_N = _rest(p_NK), _rest(logq_NK.exp())
    return total_N + rest_p_N * (rest_p_N.log() - rest_q_N.log())


def _blocks(logits_NC: Tensor) -> Iterator[slice]:
    step = max(1, _BLOCK // logits_NC.shape[1])
    return (slice(start, start + step) for start in range(0, len(logits_NC), step))


def _log_probabilities(logits_NC: Tensor, ids_NK: Tensor) -> Tensor:
    # Only these few values leave MPS, not the logits.
    asked_NK, normaliser_N1 = logits_NC.gather(1, ids_NK), torch.logsumexp(logits_NC, dim=1, keepdim=True)
    return off_mps(asked_NK).double() - off_mps(normaliser_N1).double()


def _rest(p_NK: Tensor) -> Tensor:
    return (1 - p_NK.sum(1)).clamp_min(1e-9)
