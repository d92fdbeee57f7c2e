"""The machine's limits: its fastest matrix product, and the operations per trained token.

    python benchmarks/machine.py [--threads 2]

The peak is the best of several products of square matrices (2048 on a processor, with the same number of
threads as the runs; 8192 on an accelerator) on the device that runs choose, in fp32, and in bf16 if the
hardware has instructions for it (without them such a product is a hundred times slower, and no run uses it).
Operations per trained token, for adapters on frozen matrices: 2·P forward, P being the weights of all block
matrices; 2·P' backward to the inputs, P' being those whose input has a gradient (the first block's query, key
and value have none, since nothing before them is trained); none for gradients of frozen weights. A language
model adds 2·d·V forward and 2·d·V backward for its head. A classifier that reads the first position needs
only key and value of its last block at every position; the rest of that block is not in P. Adapters,
attention scores and norms are ignored, so utilisation = operations per token × tokens/s ÷ peak is slightly
underestimated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from importlib.metadata import version

import torch
from bitrank.models.locate import locate
from bitrank.process.hardware import hardware
from bitrank_quant import block_matrices
from bitrank_trainer import DTYPES, choose_device, choose_dtype
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

_SIDE, _ACCELERATOR_SIDE, _TRIES = 2048, 8192, 8
_MODELS = {
    "movie_sentences": ("minilm", AutoModelForSequenceClassification),
    "wiki_articles": ("smollm2", AutoModelForCausalLM),
}
_FIRST = ("query", "key", "value", "q_proj", "k_proj", "v_proj")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    threads = parser.parse_args().threads
    load = os.getloadavg()[0]
    torch.set_num_threads(threads)
    device = choose_device()
    libraries = ("torch", "transformers", "peft", "bitsandbytes", "optimum-quanto")
    found = {
        "hardware": hardware(device),
        "threads": threads,
        "device": device,
        "side": _SIDE if device == "cpu" else _ACCELERATOR_SIDE,
        "dtype": choose_dtype(device),
        "gflops": {name: gflops(DTYPES[name], device) for name in sorted({choose_dtype(device), "fp32"})},
        "flops_per_token": {task: flops_per_token(task) for task in _MODELS},
        "versions": ", ".join(f"{name} {version(name)}" for name in libraries),
        "load": load,
    }
    print(json.dumps(found))


def gflops(dtype: torch.dtype, device: str = "cpu") -> float:
    """The best of several products, in 10⁹ operations per second (a multiply-add counts as two)."""
    side = _SIDE if device == "cpu" else _ACCELERATOR_SIDE
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty(side, side, dtype=dtype, device=device)
    best = math.inf
    for _ in range(_TRIES):
        _wait_for(device)
        started = time.perf_counter()
        torch.mm(left, right, out=out)
        _wait_for(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best / 1e9


def _wait_for(device: str) -> None:
    """Wait for an accelerator, which executes asynchronously, before reading the clock."""
    if device != "cpu":
        torch.accelerator.synchronize()


def empty_model(task: str) -> PreTrainedModel:
    """The model of ``task`` on the meta device: names and shapes without weights."""
    name, auto = _MODELS[task]
    # Outside of the meta device: locating a missing model creates it from real tensors.
    config = AutoConfig.from_pretrained(locate(name))
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(config)
    return model


def flops_per_token(task: str) -> int:
    """Operations for training on one token of ``task``, by the formula of the module's description."""
    model = empty_model(task)
    blocks = block_matrices(model)
    if task == "movie_sentences":
        last = max(matrix.layer or 0 for matrix in blocks)
        blocks = [
            matrix for matrix in blocks if matrix.layer != last or matrix.name.endswith(("key", "value"))
        ]
    forward = sum(math.prod(matrix.shape) for matrix in blocks)
    dead = sum(
        math.prod(matrix.shape) for matrix in blocks if matrix.layer == 0 and matrix.name.endswith(_FIRST)
    )
    head = model.get_output_embeddings() if task == "wiki_articles" else None
    vocabulary = head.weight.numel() if isinstance(head, nn.Linear) else 0
    return 2 * (forward + vocabulary) + 2 * (forward - dead + vocabulary)


if __name__ == "__main__":
    main()
