"""Sentence embeddings by the embedded MiniLM, without transformers.

The model is all-MiniLM-L6-v2 (Reimers & Gurevych 2019; Wang et al. 2020): the mean of the last hidden states
over tokens, of unit length. Importing transformers takes longer than a search may, so the six layers of BERT
are computed here with torch; a test compares them with transformers' own.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from bitrank_data import asset_dir
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

MODEL = "minilm"
_MAX_TOKENS = 128
_BATCH = 64


class Embedder:
    """``embed`` maps texts to unit vectors. The model is downloaded into the cache at first use."""

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or asset_dir(MODEL)
        config = json.loads((folder / "config.json").read_text())
        self._layers, self._heads = config["num_hidden_layers"], config["num_attention_heads"]
        self._epsilon = config["layer_norm_eps"]
        stored = load_file(folder / "model.safetensors")
        self._weights = {name.removeprefix("bert."): tensor.float() for name, tensor in stored.items()}
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(_MAX_TOKENS)
        self._tokenizer.enable_padding()

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of ``texts``, fp32 (N, D), each of length 1."""
        if not texts:
            return np.zeros((0, self._weights["embeddings.word_embeddings.weight"].shape[1]), np.float32)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        batches = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
        parts = []
        for batch in batches:
            parts.append(self._embed([texts[index] for index in batch]))
        by_length_ND = torch.cat(parts)
        found_ND = torch.empty_like(by_length_ND)
        found_ND[order] = by_length_ND
        return found_ND.numpy()

    def _embed(self, texts: Sequence[str]) -> Tensor:
        encoded = self._tokenizer.encode_batch(list(texts))
        ids_BT = torch.tensor([one.ids for one in encoded])
        mask_BT = torch.tensor([one.attention_mask for one in encoded], dtype=torch.bool)
        hidden_BTD = self._hidden(ids_BT, mask_BT)
        sums_BD = (hidden_BTD * mask_BT[..., None]).sum(1)
        return F.normalize(sums_BD, dim=1)  # the length removes the division by the number of tokens

    def _hidden(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        weights = self._weights
        words_BTD = weights["embeddings.word_embeddings.weight"][ids_BT]
        positions_TD = weights["embeddings.position_embeddings.weight"][: ids_BT.shape[1]]
        first_D = weights["embeddings.token_type_embeddings.weight"][0]
        hidden_BTD = self._norm(words_BTD + positions_TD + first_D, "embeddings.LayerNorm")
        for layer in range(self._layers):
            hidden_BTD = self._layer(hidden_BTD, mask_BT, f"encoder.layer.{layer}.")
        return hidden_BTD

    def _layer(self, x_BTD: Tensor, mask_BT: Tensor, prefix: str) -> Tensor:
        names = ("query", "key", "value")
        parts = (self._linear(x_BTD, f"{prefix}attention.self.{name}") for name in names)
        q, k, v = (part.unflatten(-1, (self._heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BT[:, None, None])
        attended_BTD = self._linear(mixed.transpose(1, 2).flatten(2), f"{prefix}attention.output.dense")
        x_BTD = self._norm(x_BTD + attended_BTD, f"{prefix}attention.output.LayerNorm")
        wide = F.gelu(self._linear(x_BTD, f"{prefix}intermediate.dense"))
        return self._norm(x_BTD + self._linear(wide, f"{prefix}output.dense"), f"{prefix}output.LayerNorm")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self._epsilon)


def read_vectors(path: Path) -> dict[str, np.ndarray]:
    """Stored vectors by the hash of their text; none if the file is absent or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(zip(stored["keys"].tolist(), stored["vectors"], strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}


def write_vectors(path: Path, vectors: Mapping[str, np.ndarray]) -> None:
    """Write ``vectors`` beside ``path`` and rename, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished.npz")
    np.savez(unfinished, keys=np.array(list(vectors)), vectors=np.stack(list(vectors.values())))
    unfinished.replace(path)
