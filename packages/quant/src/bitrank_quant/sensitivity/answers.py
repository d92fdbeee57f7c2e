"""How far a changed model's answers are from the unchanged one's: Kullback-Leibler divergence, in nats a position.

If the unchanged model's probabilities are right, D(p ‖ q) is the loss that the change adds, on average over all labels that could have
come (Kullback and Leibler 1951). The loss on the labels that did come also holds a term of first order in the change: of either sign,
mostly chance on a few thousand tokens, and larger than the rest for small errors. The divergence is of second order, as the Fisher
form that predicts it, and never negative.

Of a vocabulary only the :data:`LIKELIEST` classes of the unchanged model are kept, and all others as one: a lower bound (merging
classes loses divergence, it never adds any), in a thousandth of the memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LIKELIEST = 64


@dataclass(frozen=True)
class Answers:
    """What a model answers at N positions: the likeliest classes, their log-probabilities, and how many classes there are."""

    ids_NK: Tensor
    logp_NK: Tensor
    classes: int


def answers(logits_NC: Tensor) -> Answers:
    """What to keep of ``logits_NC`` (positions, classes)."""
    top = logits_NC.topk(min(LIKELIEST, logits_NC.shape[1]), dim=1)
    return Answers(top.indices, _log_probabilities(logits_NC, top.values), logits_NC.shape[1])


def divergence(kept: Answers, logits_NC: Tensor) -> float:
    """Σ over positions of D(p ‖ q) in nats, p as ``kept`` and q as ``logits_NC`` say."""
    logq_NK = _log_probabilities(logits_NC, logits_NC.gather(1, kept.ids_NK))
    p_NK = kept.logp_NK.exp()
    total_N = (p_NK * (kept.logp_NK - logq_NK)).sum(1)
    if kept.ids_NK.shape[1] < kept.classes:
        # What is left is taken as one less the rest, not from the logits: rounding of the normaliser then cancels to first order.
        rest_p_N, rest_q_N = _rest(p_NK), _rest(logq_NK.exp())
        total_N = total_N + rest_p_N * (rest_p_N.log() - rest_q_N.log())
    else:
        logq_N = logq_NK.logsumexp(1) - kept.logp_NK.logsumexp(1)
        total_N = total_N + logq_N
    return float(total_N.sum())


def _log_probabilities(logits_NC: Tensor, chosen_NK: Tensor) -> Tensor:
    return chosen_NK.double() - torch.logsumexp(logits_NC.float(), dim=1, keepdim=True).double()


def _rest(p_NK: Tensor) -> Tensor:
    return (1 - p_NK.sum(1)).clamp_min(1e-9)
