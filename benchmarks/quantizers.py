"""Quantizers at equal bytes: perplexity of SmolLM2 without training, error at the layers' inputs, time.

    python benchmarks/quantizers.py [--formats int3-g64,int4-g64] [--quantizers rtn,search,gptq] [--threads 1]

All block matrices are stored in one format by one quantizer, embedding and head stay in 16 bits. Moments of
the inputs come from the training split, as in a run (gathered once, then cached). Perplexity is that of the
test windows of the profile ``laptop``. The error is E‖(W - Ŵ) x‖² of each matrix relative to rounding, as a
geometric mean over the matrices. Each row is written to docs/results/quantizers.md as soon as it is measured;
rows that are not measured again are kept.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from bitrank.models.load import open_model
from bitrank.process.compute import Compute, objective_for
from bitrank.run.data import load_data
from bitrank.sensitivity.input_moments import TOKENS, StoredMoments, gather
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec
from bitrank_quant import QUANTIZERS, WeightMatrix, block_matrices, parse_format, quantize
from bitrank_trainer import peak_memory_mib
from harness import replace_section, table
from torch import Tensor

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "quantizers.md"
TASK = "wiki_articles"
HEAD = ("perplexity", "error against rounding", "largest of a matrix", "CPU seconds", "peak MiB")


@dataclass(frozen=True)
class Measured:
    """One format and quantizer: CPU seconds of quantizing all matrices, errors relative to rounding by
    matrix; the peak of memory is NaN where another program quantized."""

    perplexity: float
    errors: list[float]
    seconds: float
    peak_mib: float

    def cells(self) -> list[str]:
        mean = statistics.geometric_mean(self.errors)
        return [
            f"{self.perplexity:.2f}",
            f"{mean:.2f}",
            f"{max(self.errors):.2f}",
            f"{self.seconds:.0f}",
            "–" if math.isnan(self.peak_mib) else f"{self.peak_mib:,.0f}",
        ]


def main() -> None:
    """Measure the requested rows and write each into the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--formats", default="int3-g64,int4-g64")
    parser.add_argument("--quantizers", default=",".join(QUANTIZERS))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    spec = make_spec(find_profile("laptop"), "B-FP", TASK, {"dtype": "fp32", "threads": arguments.threads})
    moments = StoredMoments(gather(spec))
    for text in arguments.formats.split(","):
        for quantizer in arguments.quantizers.split(","):
            found = measured(spec, moments, text, quantizer)
            write_row(text, quantizer, found, f"{TOKENS:,} training tokens, {arguments.threads} thread(s)")
            print(text, quantizer, *found.cells(), flush=True)


def measured(spec: RunSpec, moments: StoredMoments, text: str, quantizer: str) -> Measured:
    """Store all block matrices of a new model in the format ``text`` by ``quantizer``, and evaluate it."""
    compute, data = Compute.of(spec), load_data(spec)
    loaded = open_model(spec, data.task.classes, compute.device, compute.dtype)
    loaded.fill_rest()
    model = loaded.model.eval().requires_grad_(False)
    errors, seconds = [], 0.0
    for matrix in block_matrices(model):
        error, took = round_in_place(model, matrix, moments, text, quantizer)
        errors.append(error)
        seconds += took
    objective = objective_for(spec.kind, fused=False)
    metrics = data.evaluate(model, data.test, objective, compute.device).metrics
    return Measured(math.exp(metrics["loss"]), errors, seconds, peak_memory_mib())


def round_in_place(
    model: torch.nn.Module, matrix: WeightMatrix, moments: StoredMoments, text: str, quantizer: str
) -> tuple[float, float]:
    """Replace the weight of ``matrix`` by its stored values; the error relative to rounding, and seconds."""
    weight, fmt = model.get_submodule(matrix.name).weight, parse_format(text)
    second = moments.of(matrix.name, matrix.shape[1])
    assert second.input_II is not None and isinstance(weight, Tensor)
    started = time.process_time()
    stored = quantize(weight, fmt, quantizer, second)
    took = time.process_time() - started
    values_OI = fmt.decode(stored, matrix.shape, torch.float32)
    rounded_OI = fmt.decode(fmt.encode(weight), matrix.shape, torch.float32)
    ratio = output_error(weight - values_OI, second.input_II)
    ratio /= output_error(weight - rounded_OI, second.input_II)
    weight.data.copy_(values_OI)
    return ratio, took


def output_error(difference_OI: Tensor, input_II: Tensor) -> float:
    """E‖Δ x‖² for inputs with second moments ``input_II``."""
    return float(((difference_OI @ input_II) * difference_OI).sum())


def write_row(text: str, quantizer: str, found: Measured, conditions: str) -> None:
    """Write the section of one format and quantizer into the page."""
    document = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Quantizers\n"
    body = f"{table(HEAD, [found.cells()])}\n\n{conditions}\n"
    name = f"{text} {quantizer}"
    PAGE.write_text(replace_section(document, name, f"### {name}\n\n{body}"), encoding="utf-8")


if __name__ == "__main__":
    main()
