"""Rounds of LoftQ on the matrices of SmolLM2: relative error ‖W − Q − L‖/‖W‖ after each round, as a mean.

    python benchmarks/loftq_rounds.py [--formats nf4-dq,int3-g64,int2-g64] [--rank 8] [--rounds 5]

Round 0 is the error without an adapter. A round quantizes what the adapter of the round before leaves, Q ←
q(W − L), and takes the best approximation of rank r, L ← SVD_r(W − Q) (Li et al. 2024, algorithm 1), whether
the error falls or rises; a run stops when it rises. The matrices are those of the first, the middle and the
last block. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from bitrank.models.load import open_model
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank_adapters import best_low_rank
from bitrank_quant import Format, block_matrices, parse_format
from harness import table
from torch import Tensor

TASK = "wiki_articles"


def main() -> None:
    """Print one row of errors for each format."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--formats", default="nf4-dq,int3-g64,int2-g64")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    weights = weights_of_three_blocks()
    rows = []
    for text in arguments.formats.split(","):
        found = [errors(weight, parse_format(text), arguments.rank, arguments.rounds) for weight in weights]
        means = [statistics.mean(row) for row in zip(*found, strict=True)]
        lowest = sum(row[1] <= min(row[2:]) for row in found)
        rows.append([text, *(f"{mean:.4f}" for mean in means), f"{lowest} of {len(found)}"])
    head = ("format", *(f"round {n}" for n in range(arguments.rounds + 1)), "lowest after round 1")
    print(table(head, rows))


def weights_of_three_blocks() -> list[Tensor]:
    """The block matrices (O, I) of the first, the middle and the last block of SmolLM2, in fp32."""
    spec = make_spec(find_profile("laptop"), "B-FP", TASK, {"dtype": "fp32"})
    loaded = open_model(spec, 0, "cpu", torch.float32)
    loaded.fill_rest()
    matrices = block_matrices(loaded.model)
    last = max(matrix.layer or 0 for matrix in matrices)
    chosen = [matrix.name for matrix in matrices if matrix.layer in (0, last // 2, last)]
    return [loaded.model.get_submodule(name).weight.detach().float() for name in chosen]


def errors(weight_OI: Tensor, fmt: Format, rank: int, rounds: int) -> list[float]:
    """‖W − Q − L‖/‖W‖ without an adapter, and after each of ``rounds`` alternating rounds."""
    shape = (weight_OI.shape[0], weight_OI.shape[1])
    held_OI, found = weight_OI, []
    for turn in range(rounds):
        residual_OI = weight_OI - fmt.decode(fmt.encode(held_OI), shape, torch.float32)
        product_OI = best_low_rank(residual_OI, rank).product()
        found += [residual_OI.norm()] if turn == 0 else []
        found.append((residual_OI - product_OI).norm())
        held_OI = weight_OI - product_OI
    return [float(error / weight_OI.norm()) for error in found]


if __name__ == "__main__":
    main()
