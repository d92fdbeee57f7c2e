"""Stand-ins for low-bit formats: does noise of the same size predict the loss that a format adds?

    python benchmarks/stand_ins.py [--models smollm2,minilm] [--sequences 8] [--threads 1]

int2 to int6 in groups of 64, on all block matrices, on attention and on the feed-forward parts, each beside
its stand-in ``noise16-…`` (16-bit weights plus noise of the same second moment per group). No training, plain
rounding, embeddings and heads in 16 bits; a classifier's head is fitted to the features first. The added loss
is that over the unquantized model, on held-out training texts. fp8 and int8 are compared on all blocks. Each
model's section of docs/results/stand-ins.md is written when it is measured.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from bitrank.sensitivity.calibration import Calibration, calibration
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank_data import Batch
from bitrank_quant import WeightMatrix, block_matrices, parse_format, swap_weights, with_weight
from bitrank_quant.sensitivity import modules_of, stored_in
from harness import replace_section, table
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "stand-ins.md"
TASKS = {"smollm2": "wiki_articles", "minilm": "movie_sentences"}
FORMATS = tuple(f"int{bits}-g64" for bits in range(2, 7))
PARTS: dict[str, Callable[[WeightMatrix], bool]] = {
    "all blocks": lambda matrix: True,
    "attention": lambda matrix: matrix.role == "attention",
    "feed-forward": lambda matrix: matrix.role == "ffn",
}
FLOOR = 0.01  # nats: ratios of smaller differences are mostly noise of the sample


@dataclass(frozen=True)
class Row:
    """Added loss in nats of a format and of its stand-in, on one part of the blocks."""

    text: str
    part: str
    real: float
    imitated: float


class Bench:
    """An unquantized model whose block matrices can be replaced, and its loss on fixed texts."""

    def __init__(self, ready: Calibration, batches: Sequence[Batch]) -> None:
        self._ready, self._batches = ready, batches
        self.blocks = block_matrices(ready.model)
        self._plain = {m.name: modules_of(ready.model, m.name, ready.matrices) for m in self.blocks}
        self.base = self.loss()

    @torch.no_grad()
    def loss(self) -> float:
        """Mean loss in nats of a label."""
        total, count = 0.0, 0
        for batch in self._batches:
            logits_NC, labels_N = self._ready.forward(self._ready.model, batch)
            total += float(F.cross_entropy(logits_NC.float(), labels_N, ignore_index=-100, reduction="sum"))
            count += int((labels_N != -100).sum())
        return total / count

    def added(self, text: str, parts: Sequence[str]) -> dict[str, float]:
        """The loss that the format ``text`` adds on each of ``parts``."""
        made: dict[str, dict[str, nn.Module]] = {}
        for matrix in self.blocks:
            plain = self._plain[matrix.name]
            made[matrix.name] = with_weight(stored_in(plain[matrix.name], parse_format(text)), plain)
        found = {}
        for part in parts:
            chosen = [m.name for m in self.blocks if PARTS[part](m)]
            for name in chosen:
                swap_weights(self._ready.model, made[name])
            found[part] = self.loss() - self.base
            for name in chosen:
                swap_weights(self._ready.model, self._plain[name])
        return found


def main() -> None:
    """Measure the requested models and write their sections."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", default=",".join(TASKS))
    parser.add_argument("--sequences", type=int, default=8, help="held-out texts of a language model")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    for name in arguments.models.split(","):
        given = {"model": name, "dtype": "fp32", "device": "cpu"}
        ready = calibration(make_spec(find_profile("laptop"), "B-FP", TASKS[name], given))
        torch.set_num_threads(arguments.threads)
        batches = _first(ready.held_out, arguments.sequences if name == "smollm2" else 256)
        bench = Bench(ready, batches)
        print(name, "unquantized", bench.base, flush=True)
        rows = _rows(bench)
        eight = {text: bench.added(text, ["all blocks"])["all blocks"] for text in ("fp8", "int8")}
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        _write(name, bench.base, tokens, rows, eight)


def _first(batches: Sequence[Batch], sequences: int) -> list[Batch]:
    chosen: list[Batch] = []
    for batch in batches:
        if sum(len(one["labels"]) for one in chosen) >= sequences:
            break
        chosen.append(batch)
    return chosen


def _rows(bench: Bench) -> list[Row]:
    rows = []
    for text in FORMATS:
        real, imitated = (bench.added(name, list(PARTS)) for name in (text, f"noise16-{text}"))
        rows += [Row(text, part, real[part], imitated[part]) for part in PARTS]
        print(*rows[-len(PARTS) :], sep="\n", flush=True)
    return rows


def _write(name: str, base: float, tokens: int, rows: Sequence[Row], eight: dict[str, float]) -> None:
    """Write the section of the model ``name``: rank correlation, mean ratio, and all differences."""
    order = spearmanr([row.real for row in rows], [row.imitated for row in rows]).statistic
    clear = [row for row in rows if min(row.real, row.imitated) >= FLOOR]
    logs = [math.log(row.imitated / row.real) for row in clear]
    mean = math.exp(sum(logs) / len(logs)) if logs else math.nan
    spread = [math.exp(value) for value in (min(logs), max(logs))] if logs else [math.nan, math.nan]
    cells = [
        (row.text, row.part, f"{row.real:.4f}", f"{row.imitated:.4f}", f"{row.imitated / row.real:.2f}")
        for row in rows
    ]
    lines = [
        f"## {name}, {TASKS[name]}",
        "",
        f"Unquantized: {base:.4f} nats on {tokens:,} tokens. Spearman correlation over {len(rows)} plans: "
        f"{order:.3f}. Geometric mean of stand-in over format, {len(clear)} plans of at least {FLOOR} nats: "
        f"{mean:.2f} ({spread[0]:.2f} to {spread[1]:.2f}). 8 bits on all blocks: fp8 {eight['fp8']:+.4f}, "
        f"int8 {eight['int8']:+.4f} nats.",
        "",
        table(("format", "part", "added by the format", "added by the stand-in", "ratio"), cells),
    ]
    document = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Stand-ins\n"
    PAGE.write_text(replace_section(document, name, "\n".join(lines)), encoding="utf-8")


if __name__ == "__main__":
    main()
