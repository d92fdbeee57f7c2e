"""The stored form of an adapter: adapters and trained heads train in fp32 and are saved in bf16.

Every number in an adapter's file takes two bytes, heads included: a 16-bit base takes a head in 16 bits when
the file is loaded, so an fp32 head would be rounded there, after it was evaluated.
"""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import nn

STORED_DTYPE = torch.bfloat16
STORED_BYTES = STORED_DTYPE.itemsize
_SAVED = (".lora_", ".modules_to_save.")
_ADDED = (*_SAVED, ".ranknum.", ".group_scales.")


def saved_parameters(model: PeftModel) -> dict[str, nn.Parameter]:
    """Parameters of ``model`` that its adapter file contains, by name: low-rank factors and trained heads."""
    return {name: parameter for name, parameter in model.named_parameters() if _is_saved(name)}


def _is_saved(name: str) -> bool:
    return any(part in name for part in _SAVED)


def adapter_bytes(model: PeftModel) -> int:
    """Bytes of the adapter in its file: two for each number of adapters and trained heads, at their full
    rank."""
    return STORED_BYTES * sum(p.numel() for p in saved_parameters(model).values())


def adapter_memory(model: PeftModel) -> int:
    """Bytes that the adapter adds to the model in memory: fp32 parameters, heads, AdaLoRA's rank counts, and
    the fp32 copies of trained group scales."""
    return sum(
        p.numel() * p.element_size()
        for name, p in model.named_parameters()
        if any(part in name for part in _ADDED)
    )


@torch.no_grad()
def round_adapter(model: PeftModel) -> None:
    """Round every saved parameter to a bf16 value, in place; its dtype stays.

    Call it before the last evaluation and ``save_pretrained`` of a training loop of your own: the file then
    holds numbers that bf16 represents exactly.
    """
    for parameter in saved_parameters(model).values():
        parameter.copy_(parameter.to(STORED_DTYPE))
