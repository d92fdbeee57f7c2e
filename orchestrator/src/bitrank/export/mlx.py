"""Export for MLX: a folder that mlx-lm loads, on Apple GPUs and on CPUs.

MLX stores a matrix as codes in 32-bit words with a scale and a bias per group, ``w = scale · code + bias``
(``mlx.core.quantize``): an affine format with its minimum as bias, so codes, scales and biases are those of
the run, in bf16. ``quantization`` in ``config.json`` has bits and group of each matrix. An adapter that stays
apart is written as mlx-lm trains it. Writing needs no MLX.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bitrank_adapters import adapted
from bitrank_quant import Affine, QuantWeight, little_endian_words, unpack_bits
from safetensors.torch import save_file
from torch import Tensor

from bitrank.errors import UserError
from bitrank.export.checked_model import CheckedModel
from bitrank.export.mlx_families import MODEL_TYPES, find_problem, window_note
from bitrank.export.packed import AdapterFiles, Layout, prepare_packed
from bitrank.export.prepared import Options, Prepared
from bitrank.export.rebuild import Rebuilt
from bitrank.export.tensors import STATE, FileTensors, config_data
from bitrank.spec.task_kinds import task_kind

ADAPTERS = "adapters"  # folder beside the weights


def check_mlx(model: CheckedModel) -> None:
    """Raise :class:`UserError` for a model that mlx-lm cannot execute, or would compute differently."""
    if task_kind(model.kind).new_head:
        raise UserError(
            f"mlx-lm generates text, and this run is a {model.kind} model; export it with --to merged"
        )
    config = model.config
    family = config.model_type
    if family not in MODEL_TYPES:
        raise UserError(
            f"the architecture {family} cannot be exported for mlx-lm; expected one of "
            f"{', '.join(MODEL_TYPES)}. Export it with --to merged, and try mlx_lm.convert on the result"
        )
    problem = find_problem(config, model.max_length)
    if problem is not None:
        raise UserError(
            f"this {family} model has {problem}, which mlx-lm does not compute; export it with --to merged"
        )


def prepare_mlx(rebuilt: Rebuilt, options: Options) -> Prepared:
    """``model.safetensors`` and ``config.json`` for mlx-lm, and the adapter's files if it stays apart."""
    layout = Layout("mlx", pack_mlx, mlx_config, {"format": "mlx"}, _adapter_files)
    prepared = prepare_packed(rebuilt, options, layout)
    note = window_note(rebuilt.inner.config)
    return prepared if note is None else replace(prepared, notes=[*prepared.notes, note])


def pack_mlx(weight: QuantWeight) -> dict[str, Tensor]:
    """The tensors of ``mlx.core.quantize`` for a matrix in an affine format.

    ``weight`` (O, I · bits / 32) in uint32; ``scales`` and ``biases`` (O, I / group) in bf16.
    """
    fmt, (rows, columns) = weight.fmt, weight.shape
    assert isinstance(fmt, Affine)  # chosen by runtime_formats
    tensors = weight.tensors
    codes_OI = unpack_bits(tensors["codes"], fmt.bits, rows * columns).view(rows, columns)
    return {
        "weight": little_endian_words(codes_OI, fmt.bits).view(torch.uint32),
        "scales": tensors["scale"].view(rows, -1),
        # In fp32 after an update within groups was added, with values that the audit rounded to 16 bits.
        "biases": tensors["minimum"].to(STATE).view(rows, -1),
    }


def mlx_config(model: Any, found: FileTensors) -> dict[str, Any]:
    """The content of ``config.json``: the whole configuration, and bits and group of quantized matrices."""
    data = config_data(model)
    rope = data.get("rope_parameters") or {}
    if "partial_rotary_factor" in rope:  # mlx-lm reads it where transformers 4 wrote it
        data["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if not found.formats:
        return data
    by_matrix = {name: {"group_size": fmt.block, "bits": fmt.bits} for name, fmt in found.formats.items()}
    # MLX requires one format as the default; every quantized matrix has an entry of its own.
    ((default, _),) = Counter(found.formats.values()).most_common(1)
    quantization = {"group_size": default.block, "bits": default.bits, "mode": "affine", **by_matrix}
    return {**data, "quantization": quantization}


def _adapter_files(model: Any) -> AdapterFiles:
    """The LoRA layers of the PEFT ``model``; their scale is in the up factors.

    mlx-lm has one rank for all matrices, so smaller factors are filled with zeros.
    """
    layers = dict(adapted(model))
    rank = max((len(layer.lora_A["default"].weight) for layer in layers.values()), default=0)
    tensors, filled = {}, 0
    for name, layer in layers.items():
        down_IR = layer.lora_A["default"].weight.detach().T.to("cpu", STATE)
        up_RO = layer.lora_B["default"].weight.detach().T.to("cpu", STATE)
        missing = rank - len(up_RO)
        filled += missing * (len(down_IR) + up_RO.shape[1]) * STATE.itemsize
        tensors[f"{name}.lora_a"] = torch.nn.functional.pad(down_IR, (0, missing)).contiguous()
        tensors[f"{name}.lora_b"] = torch.nn.functional.pad(up_RO, (0, 0, 0, missing)).contiguous()
    lora = {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": list(layers)}
    config = {"fine_tune_type": "lora", "num_layers": len(layers), "lora_parameters": lora}

    def write(folder: Path) -> None:
        place = folder / ADAPTERS
        place.mkdir()
        save_file(tensors, place / "adapters.safetensors", metadata={"format": "mlx"})
        (place / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    note = f"{nbytes:,} bytes in {ADAPTERS}, {filled:,} of them zeros: mlx-lm has one rank ({rank}) for all"
    return AdapterFiles(nbytes, note, write)
