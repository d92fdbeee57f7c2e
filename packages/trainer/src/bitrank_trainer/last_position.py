"""A decoder that classifies reads its last real token, and the attention mask says which one that is.

Decoders of transformers compute logits at every position and take those of the last token whose id is not
``config.pad_token_id``. That is another token as soon as a text ends in the id that pads: tokenizers that pad
with their end-of-sequence token, or have no padding token at all, make it so. Inside :func:`read_last_token`
the logits of the last token under the mask stand at every position, so that the model's own choice finds them
wherever it looks.
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
    """Inside, a classifier ``model`` (adapted or not) that reads the last token finds it by ``mask_BT``.

    Padding may lie on either side. Models that read elsewhere compute as they are.
    """
    head = last_token_head(model)
    if head is None:
        yield
        return
    last_B = torch.from_numpy(_last_positions(mask_BT)).to(device)
    hook = head.register_forward_hook(partial(_everywhere, last_B))
    try:
        yield
    finally:
        hook.remove()


def last_token_head(model: nn.Module) -> nn.Module | None:
    """The head of a classifier that takes the last token that is not ``config.pad_token_id``; None for other
    models."""
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    # Encoder-decoders look for it in the decoder's input, which is shifted by one.
    if not _skips_padding(type(inner)) or inner.config.is_encoder_decoder:
        return None
    return next((getattr(inner, name) for name in _HEADS if hasattr(inner, name)), None)


def _skips_padding(kind: type[nn.Module]) -> bool:
    """Whether models of this class look for the last token that does not pad."""
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    return code is not None and "last_non_pad_token" in code.co_varnames


def _last_positions(mask_BT: np.ndarray) -> np.ndarray:
    last: np.ndarray = mask_BT.shape[1] - 1 - np.argmax(mask_BT[:, ::-1], axis=1)
    return last


def _everywhere(last_B: Tensor, _head: nn.Module, _inputs: object, logits_BTC: Tensor) -> Tensor:
    rows_B = torch.arange(len(last_B), device=last_B.device)
    return logits_BTC[rows_B, last_B][:, None].expand_as(logits_BTC)
