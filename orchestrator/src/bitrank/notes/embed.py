"""Sentence embeddings by the embedded MiniLM, without transformers.

The model is all-MiniLM-L6-v2 (Reimers & Gurevych 2019; Wang et al. 2020): the mean of the last hidden states
over tokens, of unit length. Importing torch or transformers takes longer than a search may, so the six layers
of BERT are computed here with numpy; a test compares them with transformers' own.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bitrank_data import asset_dir, write_atomically
from safetensors.numpy import load_file
from scipy.special import erf
from tokenizers import Tokenizer

Array = np.ndarray[Any, Any]
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
        self._weights = {
            name.removeprefix("bert."): array.astype(np.float32) for name, array in stored.items()
        }
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(_MAX_TOKENS)
        self._tokenizer.enable_padding()

    def embed(self, texts: Sequence[str]) -> Array:
        """Embeddings of ``texts``, fp32 (N, D), each of length 1."""
        size = self._weights["embeddings.word_embeddings.weight"].shape[1]
        found_ND = np.empty((len(texts), size), np.float32)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            found_ND[batch] = self._embed([texts[index] for index in batch])
        return found_ND

    def _embed(self, texts: Sequence[str]) -> Array:
        encoded = self._tokenizer.encode_batch(list(texts))
        ids_BT = np.array([one.ids for one in encoded])
        mask_BT = np.array([one.attention_mask for one in encoded], bool)
        sums_BD = (self._hidden(ids_BT, mask_BT) * mask_BT[..., None]).sum(1)
        # Dividing the sum by its length gives the same unit vector as dividing the mean by its own.
        normal_BD: Array = sums_BD / np.linalg.norm(sums_BD, axis=1, keepdims=True)
        return normal_BD

    def _hidden(self, ids_BT: Array, mask_BT: Array) -> Array:
        weights = self._weights
        words_BTD = weights["embeddings.word_embeddings.weight"][ids_BT]
        positions_TD = weights["embeddings.position_embeddings.weight"][: ids_BT.shape[1]]
        first_D = weights["embeddings.token_type_embeddings.weight"][0]
        hidden_BTD = self._norm(words_BTD + positions_TD + first_D, "embeddings.LayerNorm")
        for layer in range(self._layers):
            hidden_BTD = self._layer(hidden_BTD, mask_BT, f"encoder.layer.{layer}.")
        return hidden_BTD

    def _layer(self, x_BTD: Array, mask_BT: Array, prefix: str) -> Array:
        q, k, v = (
            self._in_heads(self._linear(x_BTD, f"{prefix}attention.self.{name}"))
            for name in ("query", "key", "value")
        )
        scores_BHTS = q @ k.swapaxes(2, 3) / np.sqrt(np.float32(q.shape[-1]))
        scores_BHTS = np.where(mask_BT[:, None, None], scores_BHTS, -np.inf)
        weights_BHTS = np.exp(scores_BHTS - scores_BHTS.max(-1, keepdims=True))
        mixed_BTHC = (weights_BHTS / weights_BHTS.sum(-1, keepdims=True) @ v).swapaxes(1, 2)
        attended_BTD = self._linear(mixed_BTHC.reshape(x_BTD.shape), f"{prefix}attention.output.dense")
        x_BTD = self._norm(x_BTD + attended_BTD, f"{prefix}attention.output.LayerNorm")
        wide = _gelu(self._linear(x_BTD, f"{prefix}intermediate.dense"))
        return self._norm(x_BTD + self._linear(wide, f"{prefix}output.dense"), f"{prefix}output.LayerNorm")

    def _in_heads(self, x_BTD: Array) -> Array:
        batch, length, size = x_BTD.shape
        return x_BTD.reshape(batch, length, self._heads, size // self._heads).swapaxes(1, 2)

    def _linear(self, x: Array, name: str) -> Array:
        found: Array = x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]
        return found

    def _norm(self, x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centred * centred).mean(-1, keepdims=True) + np.float32(self._epsilon))
        found: Array = centred / scale * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return found


def _gelu(x: Array) -> Array:
    """The exact form, x · Φ(x)."""
    found: Array = x * (np.float32(0.5) * (1 + erf(x / np.sqrt(np.float32(2)))))
    return found


def read_vectors(path: Path) -> dict[str, Array]:
    """Stored vectors by the hash of their text; none if the file is absent or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(zip(stored["keys"].tolist(), stored["vectors"], strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}


def write_vectors(path: Path, vectors: Mapping[str, Array]) -> None:
    """Write ``vectors`` at once, so that a reader never sees half a file, whoever else writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.savez(content, keys=np.array(list(vectors)), vectors=np.stack(list(vectors.values())))
    write_atomically(path, content.getvalue())
