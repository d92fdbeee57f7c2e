"""Bits by NVIDIA ModelOpt's `auto_quantize`: its gradient scores and its linear program.

It gives query, key and value one width, and gate and up projections one, and may leave a matrix in 16 bits.
Its own weight quantizer is symmetric; its scores are of that one.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from exchange import (
    BITS,
    GROUP,
    SCALE_BITS,
    UNQUANTIZED,
    Request,
    given_folder,
    read_request,
    write_assignments,
)
from transformers import AutoModelForCausalLM

BATCH = 4


def main() -> None:
    """Write the assignment of every budget; scores are computed once and kept in a checkpoint."""
    folder = given_folder()
    request = read_request(folder)
    formats = [weights_in(bits) for bits in BITS]
    batches = batches_of(request.windows)
    assignments = {}
    for budget in request.budgets:
        bits = request.bits_of(budget) + SCALE_BITS / GROUP
        found = searched(request, bits, formats, batches, folder / "scores.pt")
        assignments[budget] = {name: found.get(name, UNQUANTIZED) for name in request.shapes}
    settings = f"auto_quantize, gradient scores, {len(request.windows)} windows"
    write_assignments(folder, ["nvidia-modelopt", "torch"], settings, assignments)


def weights_in(bits: int) -> dict[str, Any]:
    """A configuration of weights in groups of :data:`GROUP` with ``bits``, like ModelOpt's own of INT4."""
    config: dict[str, Any] = copy.deepcopy(mtq.INT4_BLOCKWISE_WEIGHT_ONLY_CFG)
    for entry in config["quant_cfg"]:
        if entry["quantizer_name"] == "*weight_quantizer":
            entry["cfg"] |= {"num_bits": bits, "block_sizes": {-1: GROUP}}
    return config | {"effective_bits": bits + SCALE_BITS / GROUP}


def batches_of(windows: list[list[int]]) -> list[dict[str, torch.Tensor]]:
    """Windows of equal length in batches, with labels. ModelOpt rounds all weights again for each batch."""
    batches = []
    for length in sorted({len(window) for window in windows}):
        ids = torch.tensor([window for window in windows if len(window) == length])
        batches += [
            {"input_ids": part, "labels": part, "attention_mask": torch.ones_like(part)}
            for part in ids.split(BATCH)
        ]
    return batches


def searched(
    request: Request,
    bits: float,
    formats: list[dict[str, Any]],
    batches: list[dict[str, torch.Tensor]],
    checkpoint: Path,
) -> dict[str, int]:
    """Bits of the quantized matrices at ``bits`` on average."""
    model = AutoModelForCausalLM.from_pretrained(request.model, dtype=torch.float32)
    # ModelOpt's average counts the head, which stays in 16 bits.
    head = model.get_output_embeddings().weight.numel()
    average = (bits * request.weights + UNQUANTIZED * head) / (request.weights + head)
    model, _ = mtq.auto_quantize(
        model,
        constraints={"effective_bits": average},
        quantization_formats=formats,
        data_loader=batches,
        forward_step=lambda net, batch: net(**batch),
        loss_func=lambda output, _batch: output.loss,
        num_calib_steps=len(batches),
        num_score_steps=len(batches),
        disabled_layers=["*lm_head*"],
        checkpoint=str(checkpoint),
    )
    quantizers = {name: getattr(module, "weight_quantizer", None) for name, module in model.named_modules()}
    return {name: int(one.num_bits) for name, one in quantizers.items() if one is not None and one.is_enabled}


if __name__ == "__main__":
    main()
