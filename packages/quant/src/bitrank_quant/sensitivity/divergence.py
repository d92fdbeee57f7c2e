"""How far a changed model's answers are from the unchanged one's: Kullback-Leibler divergence, in nats a
position.

If the unchanged model's probabilities are right, D(p ‖ q) is the loss that the change adds, on average over
all labels that could have come (Kullback and Leibler 1951). The loss on the labels that did come also holds a
term of first order in the change: of either sign, mostly chance on a few thousand tokens, and larger than the
rest for small errors. The divergence is of second order, as the Fisher form that predicts it, and never
negative.

Of a vocabulary only the :data:`LIKELIEST` classes of the unchanged model are kept, and all others as one: a
lower bound (merging classes loses divergence, it never adds any), in a thousandth of the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

LIKELIEST = 64
_BLOCK = (
    2**21
)  # logits looked at together: 8 MiB in fp32, so that what a pass over them makes stays in a cache


@dataclass(frozen=True)
class Answers:
    """What a model answers at N positions: the likeliest classes, their log-probabilities, and how many
    classes there are.
    """

    ids_NK: Tensor
    logp_NK: Tensor
    classes: int

    def at(self, rows: slice) -> Answers:
        """The answers at some of the positions."""
        return Answers(self.ids_NK[rows], self.logp_NK[rows], self.classes)


def answers(logits_NC: Tensor) -> Answers:
    """What to keep of ``logits_NC`` (positions, classes)."""
    ids, logp = [], []
    for rows in _blocks(logits_NC):
        some_NC = logits_NC[rows].float()
        ids.append(some_NC.topk(min(LIKELIEST, some_NC.shape[1]), dim=1).indices)
        logp.append(_log_probabilities(some_NC, ids[-1]))
    return Answers(torch.cat(ids), torch.cat(logp), logits_NC.shape[1])


def loss_and_divergence(kept: Answers, logits_NC: Tensor, labels_N: Tensor) -> tuple[float, float]:
    """Nats lost on ``labels_N`` and of divergence from ``kept``, each summed over the positions whose label
    is not negative.

    Both come from one normaliser: of 49,000 classes finding it takes longer than all else.
    """
    loss = diverged = 0.0
    for rows in _blocks(logits_NC):
        counts_N, known = labels_N[rows] >= 0, kept.at(rows)
        asked_NK = torch.cat([known.ids_NK, labels_N[rows].clamp_min(0)[:, None]], dim=1)
        logq_NK = _log_probabilities(logits_NC[rows].float(), asked_NK)
        loss -= float(logq_NK[counts_N, -1].sum())
        diverged += float(divergence(known, logq_NK[:, :-1])[counts_N].sum())
    return loss, diverged


def divergence(kept: Answers, logq_NK: Tensor) -> Tensor:
    """D(p ‖ q) in nats at each of N positions, p as ``kept`` and q as the log-probabilities of the same
    classes say.
    """
    p_NK = kept.logp_NK.exp()
    total_N = (p_NK * (kept.logp_NK - logq_NK)).sum(1)
    if kept.ids_NK.shape[1] == kept.classes:
        return total_N + logq_NK.logsumexp(1) - kept.logp_NK.logsumexp(1)
    # What is left is taken as one less the rest, not from the logits: rounding of the normaliser then cancels
    # to first order.
    rest_p_N, rest_q_N = _rest(p_NK), _rest(logq_NK.exp())
    return total_N + rest_p_N * (rest_p_N.log() - rest_q_N.log())


def _blocks(logits_NC: Tensor) -> Iterator[slice]:
    step = max(1, _BLOCK // logits_NC.shape[1])
    return (slice(start, start + step) for start in range(0, len(logits_NC), step))


def _log_probabilities(logits_NC: Tensor, ids_NK: Tensor) -> Tensor:
    return logits_NC.gather(1, ids_NK).double() - torch.logsumexp(logits_NC, dim=1, keepdim=True).double()


def _rest(p_NK: Tensor) -> Tensor:
    return (1 - p_NK.sum(1)).clamp_min(1e-9)
