"""Adapters as plain LoRA files, and the low-rank update of each matrix read back from such files.

An adapter of any kind adds scale · up · down to a matrix. AdaLoRA's factors convert to this form exactly:
down = Λ Q, up = P. PEFT multiplies AdaLoRA's product by α / (rank + 1e-5) and LoRA's by α/r; the relative
difference of about 1e-6 is folded into ``up``, so that α/r remains the only scale. Files of runs are bf16;
the update of each matrix is computed in fp32 from their numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitrank_adapters.attach import lora_config
from bitrank_adapters.errors import AdapterError
from bitrank_adapters.part_start import TAKEN_FROM_BASE
from bitrank_adapters.rank_hooks import adapted, scale_of
from bitrank_adapters.scales import effective_scale

_ADAPTER = "default"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Settings of PEFT with which an update is no sum of low-rank parts, or applies to other tensors or to some
# tokens only.
_UNSUPPORTED = (
    "use_dora",
    "use_rslora",
    "bias",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "corda_config",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
    "arrow_config",
)
# Initializations that leave the base as it is. Others move a part of each weight into the adapter, so the
# adapter belongs to a changed base that the files do not contain.
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal", "default")
_FACTOR = re.compile(r"\.lora_[AB](\.weight)?$|\.lora_E$|\.ranknum$")


@dataclass(frozen=True)
class LowRank:
    """Update of one matrix: ``scale`` · ``up_OR`` · ``down_RI``."""

    up_OR: Tensor
    down_RI: Tensor
    scale: float

    def product(self) -> Tensor:
        """The update as an (out, in) matrix in fp32."""
        return self.scale * (self.up_OR.float() @ self.down_RI.float())


@dataclass(frozen=True)
class SavedAdapter:
    """Adapter read from files: low-rank ``parts`` by matrix, and ``whole`` parameters by name.

    ``whole`` holds the parameters of modules trained in full. All tensors are fp32.
    """

    parts: dict[str, LowRank]
    whole: dict[str, Tensor]


def save_as_lora(model: PeftModel, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write AdaLoRA layers as a plain LoRA adapter with rank and α per matrix, all tensors in ``dtype``.

    Raises :class:`AdapterError` for a model that :func:`~bitrank_adapters.attach_adalora` did not make.
    """
    scale, factors = scale_of(model), {}
    for name, layer in adapted(model):
        down, up = layer.lora_A[_ADAPTER].detach(), layer.lora_B[_ADAPTER].detach()
        rescaled = up * (effective_scale(layer) / scale.of(layer.r[_ADAPTER]))
        factors[name] = (down * layer.lora_E[_ADAPTER].detach(), rescaled)
    write_lora(model, folder, factors, dtype)


def write_lora(
    model: PeftModel, folder: Path, factors: Mapping[str, tuple[Tensor, Tensor]], dtype: torch.dtype
) -> None:
    """Write ``factors``, (A (R, I), B (O, R)) by matrix, and the modules of ``model`` that train whole.

    The file is a plain LoRA adapter with the rank of each A, and the scale of that rank by the model's
    policy.
    """
    config: Any = model.peft_config[_ADAPTER]
    tensors = _whole_modules(model)
    for name, (down_RI, up_OR) in factors.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = down_RI
        tensors[f"{PREFIX}{name}.lora_B.weight"] = up_OR
    ranks = {name: len(down_RI) for name, (down_RI, _) in factors.items()}
    made = lora_config(ranks, scale_of(model), list(config.modules_to_save or []))
    made.base_model_name_or_path, made.inference_mode = config.base_model_name_or_path, True
    made.task_type = config.task_type
    if config.init_lora_weights == TAKEN_FROM_BASE:
        made.init_lora_weights = config.init_lora_weights
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: value.to("cpu", dtype).contiguous() for key, value in tensors.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    made.save_pretrained(str(folder))


def read_adapter(folder: Path, *, has_its_base: bool = False) -> SavedAdapter:
    """Read a LoRA or AdaLoRA adapter saved by PEFT or by this package.

    ``has_its_base``: the caller has the base of the adapter's run, from which a part may have been taken.
    Raises :class:`AdapterError` if ``folder`` holds no adapter, one that is no sum of low-rank parts, or one
    that started as a part of its base and has only the whole base.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"{folder} holds no adapter: expected {CONFIG} and {WEIGHTS} as PEFT saves them ({error})"
        ) from error
    kind = config.get("peft_type")
    special = [key for key in _UNSUPPORTED if config.get(key) not in (None, False, "none")]
    start = config.get("init_lora_weights", True)
    if start == TAKEN_FROM_BASE and not has_its_base:
        raise AdapterError(
            f"the adapter in {folder} started as a part of its base, which its run stores without that part: "
            "over the whole base the part would count twice. Give the folder of the run, with spec.json and "
            "plan.json"
        )
    special += [] if start in (*_PLAIN_STARTS, TAKEN_FROM_BASE) else [f"init_lora_weights={start}"]
    if kind not in {"LORA", "ADALORA"} or special:
        found = f"{kind} with {special[0]}" if special else str(kind)
        raise AdapterError(
            f"{folder} holds an adapter of kind {found} that cannot be folded into weights here; expected "
            "LORA or ADALORA as a sum of low-rank parts"
        )
    named = {key.removeprefix(PREFIX): tensor.float() for key, tensor in tensors.items()}
    if others := [key for key in named if ".lora_" in key and not _FACTOR.search(key)]:
        raise AdapterError(
            f"{folder} holds {others[0]}, which cannot be folded into weights here; expected the factors "
            "lora_A and lora_B of linear layers alone"
        )
    names = [key.removesuffix(".lora_A.weight").removesuffix(".lora_A") for key in named if ".lora_A" in key]
    ups = [key.removesuffix(".lora_B.weight").removesuffix(".lora_B") for key in named if ".lora_B" in key]
    if incomplete := set(names) ^ set(ups):
        raise AdapterError(
            f"{folder} holds one factor of {min(incomplete)} only; expected lora_A and lora_B of every matrix"
        )
    parts = {name: _part(name, named, config) for name in names}
    return SavedAdapter(parts, {key: tensor for key, tensor in named.items() if ".lora_" not in key})


def _part(name: str, named: dict[str, Tensor], config: dict[str, Any]) -> LowRank:
    if config["peft_type"] == "ADALORA":
        down_RI = named[f"{name}.lora_A"] * named[f"{name}.lora_E"]
        return LowRank(named[f"{name}.lora_B"], down_RI, config["lora_alpha"] / (config["init_r"] + 1e-5))
    down_RI = named[f"{name}.lora_A.weight"]
    patterns = config.get("alpha_pattern") or {}  # PEFT matches whole names and their ends, as expressions
    alpha = patterns.get(get_pattern_key(patterns, name), config["lora_alpha"])
    return LowRank(named[f"{name}.lora_B.weight"], down_RI, alpha / len(down_RI))


def _whole_modules(model: PeftModel) -> dict[str, Tensor]:
    """Parameters of modules trained in full, under the names of PEFT's files."""
    return {
        (
            f"{PREFIX}{name.removeprefix(PREFIX).replace(f'.modules_to_save.{_ADAPTER}', '')}"
        ): parameter.detach()
        for name, parameter in model.named_parameters()
        if f".modules_to_save.{_ADAPTER}" in name
    }
