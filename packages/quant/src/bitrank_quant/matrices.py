"""The weight matrices of a model, as plain data: what a precision or rank plan can name.

A *block* matrix is a linear layer inside the repeated transformer blocks. Its role is read from its path: attention when a
component of the path speaks of attention, feed-forward otherwise. That rule holds for BERT, DistilBERT, GPT-2, GPT-Neo, Llama
and T5, and is tested on them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class WeightMatrix:
    """One matrix: its module name, role, block number (None outside the blocks) and stored shape (out, in).

    ``tied_to`` names the embedding whose weight this head shares; such a head follows the embedding's format.
    """

    name: str
    role: str  # "attention", "cross-attention", "ffn", "embedding", "head", "other"
    layer: int | None
    shape: tuple[int, int]
    tied_to: str | None = None


def weight_matrices(model: nn.Module) -> list[WeightMatrix]:
    """Every linear, ``Conv1D`` and embedding matrix of ``model`` in module order. A head tied to an embedding is listed too."""
    tied = tied_heads(model)
    return [_describe(name, module, tied.get(name)) for name, module in model.named_modules() if _is_matrix(module)]


def tied_heads(model: nn.Module) -> dict[str, str]:
    """Linear modules whose weight *is* an embedding's: {head name: embedding name}."""
    embeddings = {id(m.weight): name for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    linear = ((name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear))
    return {name: embeddings[id(m.weight)] for name, m in linear if id(m.weight) in embeddings}


def block_matrices(model: nn.Module) -> list[WeightMatrix]:
    """The linear matrices inside the transformer blocks: those that QLoRA quantizes and LoRA adapts."""
    return [matrix for matrix in weight_matrices(model) if matrix.layer is not None and matrix.role != "embedding"]


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Embedding, Conv1D))


def _describe(name: str, module: nn.Module, tied_to: str | None) -> WeightMatrix:
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    shape = tuple(weight.shape)[::-1] if isinstance(module, Conv1D) else tuple(weight.shape)
    block = re.search(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.", name)
    layer = int(block[1]) if block else None
    return WeightMatrix(name, _role(name, module, layer), layer, (int(shape[0]), int(shape[1])), tied_to)


def _role(name: str, module: nn.Module, layer: int | None) -> str:
    path = name.lower()
    if isinstance(module, nn.Embedding):
        return "embedding"
    if layer is None:
        return "head" if re.search(r"(lm_head|classifier|score|qa_outputs)(\.|$)", path) else "other"
    if re.search(r"crossattention|encdecattention", path):
        return "cross-attention"
    return "attention" if "attn" in path or "attention" in path else "ffn"
