"""Tiny learnable problem with batches like those of ``bitrank_data``, from plain arrays."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn


class TinyClassifier(nn.Module):
    """Mean of embeddings, dropout (so that the random state matters), linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.dropout = nn.Dropout(0.2)
        self.linear = nn.Linear(8, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        mask = attention_mask[..., None].float()
        pooled = (self.embedding(input_ids) * mask).sum(1) / mask.sum(1)
        return SimpleNamespace(logits=self.linear(self.dropout(pooled)))


class TinyLm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.linear = nn.Linear(8, 20)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, use_cache: bool = False
    ) -> Any:
        return SimpleNamespace(logits=self.linear(self.embedding(input_ids)))


class TinyBlock(nn.Module):
    """Frozen matrix with a small trainable pair of factors."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + torch.tanh(self.frozen(x_BTD) + self.up(self.down(x_BTD)))


class TinyDeep(nn.Module):
    """Language model of three blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8).requires_grad_(False)
        self.layers = nn.ModuleList(TinyBlock() for _ in range(3))
        self.head = nn.Linear(8, 20).requires_grad_(False)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, use_cache: bool = False
    ) -> Any:
        x_BTD = self.embedding(input_ids)
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        return SimpleNamespace(logits=self.head(x_BTD))


def batch(number: int, size: int = 8, length: int = 6, lm: bool = False) -> dict[str, np.ndarray]:
    random = np.random.default_rng(number)
    ids = random.integers(1, 20, (size, length))
    mask = np.ones_like(ids)
    mask[0, -2:] = 0
    labels = np.where(mask == 1, ids, -100) if lm else ((ids * mask > 10).sum(1) > 2).astype(np.int64)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "index": np.arange(size) + number * size,
    }


def batches(skip: int = 0, lm: bool = False) -> Iterator[dict[str, np.ndarray]]:
    while True:
        yield batch(skip % 30, lm=lm)
        skip += 1
