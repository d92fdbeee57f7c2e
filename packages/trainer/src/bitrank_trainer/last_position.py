"""Last real token of a decoder classifier, selected by the attention mask instead of the token id.

Decoder classifiers of transformers compute logits at every position and use those of the last token whose id
is not ``config.pad_token_id``. This is the wrong token if a text ends in the padding id, as with tokenizers
that pad with their end-of-sequence token or have no padding token. :func:`read_last_token` copies the logits
of the last token under the mask to every position, so the model's own selection returns them at any index.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_HEADS = ("score", "classifier")


@contextmanager
def read_last_token(model: nn.Module, mask_BT: np.ndarray, device: str) -> Iterator[None]:
    """Context in which a classifier ``model`` selects its last token by ``mask_BT`` (batch, tokens).

    Adapted models and padding on either side are supported. Models that read another position are unchanged.
    """
    with read_positions(model, torch.from_numpy(last_positions(mask_BT)).to(device)):
        yield


@contextmanager
def read_positions(model: nn.Module, last_B: Tensor | None) -> Iterator[None]:
    """Context in which a classifier ``model`` selects the tokens ``last_B`` (batch,); None: unchanged.

    Models that read another position than the last are unchanged.
    """
    head = last_token_head(model)
    if head is None or last_B is None:
        yield
        return
    hook = head.register_forward_hook(partial(_everywhere, last_B))
    try:
        yield
    finally:
        hook.remove()


def last_token_head(model: nn.Module) -> nn.Module | None:
    """Head of a classifier that reads the last token other than ``config.pad_token_id``; else None."""
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    # Encoder-decoders search in the decoder's input, which is shifted by one.
    if not _skips_padding(type(inner)) or inner.config.is_encoder_decoder:
        return None
    return next((getattr(inner, name) for name in _HEADS if hasattr(inner, name)), None)


def _skips_padding(kind: type[nn.Module]) -> bool:
    """Whether models of class ``kind`` search for the last non-padding token."""
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    return code is not None and "last_non_pad_token" in code.co_varnames


def last_positions(mask_BT: np.ndarray) -> np.ndarray:
    """Position of the last token under the mask (batch,)."""
    last: np.ndarray = mask_BT.shape[1] - 1 - np.argmax(mask_BT[:, ::-1], axis=1)
    return last


def _everywhere(last_B: Tensor, _head: nn.Module, _inputs: object, logits_BTC: Tensor) -> Tensor:
    rows_B = torch.arange(len(last_B), device=last_B.device)
    return logits_BTC[rows_B, last_B][:, None].expand_as(logits_BTC)
