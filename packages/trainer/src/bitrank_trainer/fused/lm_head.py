"""Language-model head and cross entropy as one function, computed in blocks of positions.

With a vocabulary of 49,152, logits are the largest tensors of a step: 100 MB in fp32 for 512 positions,
several times over. The head is frozen, so its loss needs no graph: each block of positions yields its loss
and the gradient of its hidden states in the forward pass, and its logits are discarded. Results equal
``head(hidden).float()`` followed by ``cross_entropy`` up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitrank_trainer.fused.known import hooked, replaced, unchanged

_BLOCK_BYTES = 2**25  # fp32 logits of one block
_CUDA_BLOCK_BYTES = 2**28  # products of few positions would leave most of its units idle
# Models whose head is a single matrix product after the body. Others scale or cap their logits.
_PLAIN_HEADS = (
    "LlamaForCausalLM",
    "GPT2LMHeadModel",
    "GPTNeoForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "OPTForCausalLM",
)


@dataclass(frozen=True)
class Parts:
    """Causal language model split into ``body`` (gives hidden states) and ``head`` (frozen linear layer)."""

    body: nn.Module
    head: nn.Module


def split_head(model: nn.Module) -> Parts | None:
    """Body and head of ``model`` (adapted or not); None if the fused head loss does not apply.

    It does not apply to a trainable head, a head with bias or more than one product, or hooks that separate
    calls of body and head would skip.
    """
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    if type(inner).__name__ not in _PLAIN_HEADS or not unchanged(inner) or hooked(model):
        return None
    head: Any = inner.get_output_embeddings()
    if replaced(head) or hooked(head):
        return None
    whole = type(head) is nn.Linear or isinstance(
        getattr(type(head), "weight", None), property
    )  # a ``weight`` property decodes a quantized weight
    if not whole or head.bias is not None or any(parameter.requires_grad for parameter in head.parameters()):
        return None
    return Parts(getattr(inner, inner.base_model_prefix), head)


def head_loss(hidden_ND: Tensor, head: nn.Module, targets_N: Tensor) -> Tensor:
    """Mean cross entropy in nats over the positions whose target is not −100.

    Shapes: ``hidden_ND`` (positions, width), ``targets_N`` (positions,).
    """
    kept_N = targets_N != -100
    if _is_recorded(hidden_ND):
        # A graph repeats operations of fixed shapes: all positions, with weight 0 for those without a target.
        return _HeadLoss.apply(hidden_ND, head, targets_N.clamp_min(0), kept_N)  # type: ignore[no-any-return]
    if not bool(kept_N.all()):
        hidden_ND, targets_N = hidden_ND[kept_N], targets_N[kept_N]
    return _HeadLoss.apply(hidden_ND, head, targets_N, None)  # type: ignore[no-any-return]


def _is_recorded(tensor: Tensor) -> bool:
    """Whether operations on ``tensor`` are now recorded as a CUDA graph."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def head_scores(hidden_ND: Tensor, head: nn.Module, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Per position: loss in nats (N,), 0 for target −100; whether the target has the largest logit (N,)."""
    weight_DV: Any = head.weight.T  # a quantized head decodes once here
    losses, rights = [], []
    for start, stop in _blocks(hidden_ND, weight_DV.shape[1]):
        logits_BV = (hidden_ND[start:stop] @ weight_DV).float()
        losses.append(F.cross_entropy(logits_BV, targets_N[start:stop], reduction="none"))
        rights.append(logits_BV.argmax(-1) == targets_N[start:stop])
    return torch.cat(losses), torch.cat(rights)


def block_positions(vocabulary: int, device: str = "cpu") -> int:
    """Number of positions per block, so that fp32 logits of one block stay within a fixed size."""
    nbytes = _CUDA_BLOCK_BYTES if device == "cuda" else _BLOCK_BYTES
    return max(1, nbytes // (4 * max(1, vocabulary)))


def _blocks(hidden_ND: Tensor, vocabulary: int) -> list[tuple[int, int]]:
    """(start, stop) of each block; one empty block if there is no position (a batch of one-token texts)."""
    positions, size = len(hidden_ND), block_positions(vocabulary, hidden_ND.device.type)
    return [(start, min(start + size, positions)) for start in range(0, max(1, positions), size)]


class _HeadLoss(torch.autograd.Function):
    """Head loss; the forward pass computes the gradient of the hidden states, the backward pass scales it."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head: Any, targets_N: Tensor, kept_N: Tensor | None) -> Tensor:
        """Mean over all positions, or over those in ``kept_N``; every target must be a token."""
        weight_VD = head.weight.detach()  # a quantized head decodes once here, for both passes
        grad_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        buffers = _scratch_buffers(hidden_ND, weight_VD)
        for start, stop in _blocks(hidden_ND, len(weight_VD)):
            product_BV, logits_BV = (buffer[: stop - start] for buffer in buffers)
            torch.mm(hidden_ND[start:stop], weight_VD.T, out=product_BV)
            logs_BV = torch.log_softmax(logits_BV.copy_(product_BV), -1, out=logits_BV)
            targets_B1 = targets_N[start:stop, None]
            logs_B1 = logs_BV.gather(1, targets_B1)
            total -= (logs_B1 if kept_N is None else logs_B1.masked_fill(~kept_N[start:stop, None], 0)).sum()
            if grad_ND is not None:
                probabilities_BV = logs_BV.exp_()
                probabilities_BV.scatter_add_(
                    1, targets_B1, probabilities_BV.new_full(targets_B1.shape, -1.0)
                )
                torch.mm(product_BV.copy_(probabilities_BV), weight_VD, out=grad_ND[start:stop])
        if kept_N is not None and grad_ND is not None:
            grad_ND.masked_fill_(~kept_N[:, None], 0)
        ctx.count = len(hidden_ND) if kept_N is None else kept_N.sum()
        ctx.save_for_backward(grad_ND)
        return total / ctx.count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_ND,) = ctx.saved_tensors
        # The division by the number of positions is here because the incoming gradient includes the loss
        # scale: divided before, probabilities over hundreds of positions underflow in fp16. In fp32, because
        # accelerators round a scalar factor to the dtype of the tensor.
        return grad_ND.float().mul_(grads[0] / ctx.count).to(grad_ND.dtype), None, None, None


def _scratch_buffers(hidden_ND: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Buffers for a block's product (its own dtype) and its fp32 logits; the same one for equal dtypes."""
    vocabulary = len(weight_VD)
    positions = min(len(hidden_ND), block_positions(vocabulary, hidden_ND.device.type))
    product_BV = hidden_ND.new_empty((positions, vocabulary))
    return product_BV, product_BV if product_BV.dtype == torch.float32 else product_BV.new_empty(
        product_BV.shape, dtype=torch.float32
    )
