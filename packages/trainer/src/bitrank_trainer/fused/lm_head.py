"""The language-model head and its cross entropy together, a block of positions at a time.

A vocabulary of 49,152 makes logits the largest tensors of a step: 100 MB in fp32 for 512 positions, several times over. The head
is frozen, so its loss needs no graph: each block of positions gives its loss and the gradient for its hidden states at once, and
its logits are forgotten. Numbers equal ``head(hidden).float()`` followed by ``cross_entropy`` to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitrank_trainer.fused.known import hooked, replaced, unchanged

_BLOCK_BYTES = 2**25  # of fp32 logits held at once
# Their head is one matrix product after the body, and nothing else. Others scale or cap their logits.
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
    """A causal language model cut before its head: ``body`` gives hidden states, ``head`` is a frozen linear layer."""

    body: nn.Module
    head: nn.Module


def split_head(model: nn.Module) -> Parts | None:
    """Body and head of ``model`` (adapted or not); None when its head is trained or does more than one
    product, or there are hooks that the two alone would pass by."""
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
    )  # a property decodes
    if not whole or head.bias is not None or any(parameter.requires_grad for parameter in head.parameters()):
        return None
    return Parts(getattr(inner, inner.base_model_prefix), head)


def head_loss(hidden_ND: Tensor, head: nn.Module, targets_N: Tensor) -> Tensor:
    """Mean cross entropy in nats over the positions whose target is not −100."""
    kept = targets_N != -100
    if not bool(kept.all()):
        hidden_ND, targets_N = hidden_ND[kept], targets_N[kept]
    loss: Tensor = _HeadLoss.apply(hidden_ND, head, targets_N)
    return loss


def head_scores(hidden_ND: Tensor, head: nn.Module, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Nats (N,) of each target, 0 where it is −100, and whether it is the most likely token (N,)."""
    weight_VD: Any = head.weight
    losses, rights = [], []
    for start, stop in _blocks(len(hidden_ND), len(weight_VD)):
        logits_BV = (hidden_ND[start:stop] @ weight_VD.T).float()
        losses.append(F.cross_entropy(logits_BV, targets_N[start:stop], reduction="none"))
        rights.append(logits_BV.argmax(-1) == targets_N[start:stop])
    return torch.cat(losses), torch.cat(rights)


def block_positions(vocabulary: int) -> int:
    """Positions whose fp32 logits are held at once."""
    return max(1, _BLOCK_BYTES // (4 * max(1, vocabulary)))


def _blocks(positions: int, vocabulary: int) -> list[tuple[int, int]]:
    """Starts and ends; one empty block where there is no position, as in a batch of one-token texts."""
    size = block_positions(vocabulary)
    return [(start, min(start + size, positions)) for start in range(0, max(1, positions), size)]


class _HeadLoss(torch.autograd.Function):
    """Loss and the gradient of the hidden states, made in the forward pass; the backward pass only scales it."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head: Any, targets_N: Tensor) -> Tensor:
        weight_VD = head.weight  # a quantized head decodes here, once for both passes
        grad_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        buffers = _scratch_buffers(hidden_ND, weight_VD)
        for start, stop in _blocks(len(hidden_ND), len(weight_VD)):
            product_BV, logits_BV = (buffer[: stop - start] for buffer in buffers)
            torch.mm(hidden_ND[start:stop], weight_VD.T, out=product_BV)
            logs_BV = torch.log_softmax(logits_BV.copy_(product_BV), -1, out=logits_BV)
            targets_B1 = targets_N[start:stop, None]
            total -= logs_BV.gather(1, targets_B1).sum()
            if grad_ND is not None:
                chances_BV = logs_BV.exp_()
                chances_BV.scatter_add_(1, targets_B1, chances_BV.new_full(targets_B1.shape, -1.0))
                torch.mm(product_BV.copy_(chances_BV), weight_VD, out=grad_ND[start:stop])
        ctx.save_for_backward(grad_ND)
        return total / len(hidden_ND)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad_ND,) = ctx.saved_tensors
        # Of the mean: divided here, where a loss scale is there too; divided before, chances over hundreds of positions vanish in fp16. In
        # fp32, since accelerators round a factor to the dtype of what it multiplies.
        return grad_ND.float().mul_(grads[0] / len(grad_ND)).to(grad_ND.dtype), None, None


def _scratch_buffers(hidden_ND: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Where each block's product goes, in its own dtype, and its logits in fp32: the same place where these are one dtype."""
    positions, vocabulary = min(len(hidden_ND), block_positions(len(weight_VD))), len(weight_VD)
    product_BV = hidden_ND.new_empty((positions, vocabulary))
    return product_BV, product_BV if product_BV.dtype == torch.float32 else product_BV.new_empty(
        product_BV.shape, dtype=torch.float32
    )
