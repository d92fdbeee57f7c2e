"""Adapters that started as parts of their matrices, as adapters of the whole matrices.

The run of such an adapter stores W − s · B₀ A₀, and trains B A from B₀ A₀. Over W itself the same model has
the update s · B A − s · B₀ A₀ of twice the rank, which PEFT's ``path_initial_model_for_weight_conversion``
writes too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bitrank_adapters.errors import AdapterError
from bitrank_adapters.export import CONFIG, PREFIX, WEIGHTS, LowRank, SavedAdapter
from bitrank_adapters.part_start import Part


def over_whole_base(saved: SavedAdapter, taken: Mapping[str, Part]) -> SavedAdapter:
    """``saved``, which started as the parts ``taken`` out of its matrices, for the whole matrices.

    Both factors of a part are joined to those of the adapter, whose scale becomes 1.
    """
    parts = dict(saved.parts)
    for name, part in taken.items():
        nothing = LowRank(part.up_OR[:, :0], part.down_RI[:0], 1.0)
        own = parts.get(name, nothing)
        up_OR = torch.cat([own.scale * own.up_OR, -part.up_OR.to(own.up_OR)], dim=1)
        parts[name] = LowRank(up_OR, torch.cat([own.down_RI, part.down_RI.to(own.down_RI)]), 1.0)
    return SavedAdapter(parts, saved.whole)


def write_adapter(saved: SavedAdapter, source: Path, folder: Path) -> None:
    """Write ``saved`` to ``folder`` as plain LoRA in fp32; the base and task are those of ``source``.

    Raises :class:`AdapterError` for an adapter without low-rank parts.
    """
    if not saved.parts:
        raise AdapterError(f"expected an adapter of one matrix or more, got none from {source}")
    config: dict[str, Any] = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    ranks = {name: len(part.down_RI) for name, part in saved.parts.items()}
    alphas = {name: part.scale * ranks[name] for name, part in saved.parts.items()}
    first = next(iter(ranks))
    config |= {"init_lora_weights": True, "target_modules": list(ranks)}
    config |= {"r": ranks[first], "lora_alpha": alphas[first], "rank_pattern": ranks, "alpha_pattern": alphas}
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in saved.whole.items()}
    for name, part in saved.parts.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = part.down_RI
        tensors[f"{PREFIX}{name}.lora_B.weight"] = part.up_OR
    whole = {key: tensor.cpu().float().contiguous() for key, tensor in tensors.items()}
    save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
