"""The block matrices as auto-round stores them, decoded: rounding learned on the calibration windows."""

from __future__ import annotations

import json
import os

import torch
from auto_round import AutoRound
from exchange import GROUP, given_folder, read_request, write_weights
from transformers import AutoModelForCausalLM, AutoTokenizer

STEPS = int(os.environ.get("BITRANK_AUTOROUND_STEPS", "200"))  # auto-round's default
BATCH = 8


def main() -> None:
    """Write the decoded matrices."""
    folder = given_folder()
    request = read_request(folder)
    tokenizer = AutoTokenizer.from_pretrained(request.model)
    dataset = folder / "texts.json"
    dataset.write_text(json.dumps([{"text": text} for text in request.texts]))
    length = min(len(tokenizer(text)["input_ids"]) for text in request.texts)
    model = AutoModelForCausalLM.from_pretrained(request.model, dtype=torch.float32)
    rounder = AutoRound(
        model,
        tokenizer,
        bits=request.width,
        group_size=GROUP,
        sym=False,
        iters=STEPS,
        nsamples=len(request.texts),
        seqlen=length,
        batch_size=BATCH,
        dataset=str(dataset),
        device_map="cpu",
        amp=False,
    )
    model, _ = rounder.quantize()
    modules = dict(model.named_modules())
    weights = {name: modules[name].weight for name in request.shapes}
    settings = f"asymmetric, {STEPS} steps a block, {len(request.texts)} windows of {length} tokens"
    write_weights(folder, ["auto-round", "torch"], settings, weights)


if __name__ == "__main__":
    main()
