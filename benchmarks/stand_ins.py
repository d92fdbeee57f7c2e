"""Stand-ins for low-bit formats: does noise of the same size predict the loss that a format adds?

    python benchmarks/stand_ins.py [--models smollm2,minilm] [--formats int4-g64] [--sequences 8]

int2 to int6 in groups of 64, on all block matrices, on attention and on the feed-forward parts, each beside
its stand-in ``noise16-…`` (16-bit weights plus noise of the same second moment per group). No training, plain
rounding, embeddings and heads in 16 bits; a classifier's head is fitted to the features first. Added loss and
divergence are those from the unquantized model, on held-out training texts. fp8 and int8 are compared on all
blocks. Each model's section of docs/results/stand-ins.md is written after every format.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from bitrank.sensitivity.calibration import Calibration, calibration
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank_data import IGNORED, Batch
from bitrank_quant import WeightMatrix, block_matrices, parse_format, swap_weights, with_weight
from bitrank_quant.sensitivity import modules_of, stored_in
from harness import replace_section, table
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "stand-ins.md"
TASKS = {"smollm2": "wiki_articles", "minilm": "movie_sentences"}
FORMATS = tuple(f"int{bits}-g64" for bits in range(2, 7))
PARTS: dict[str, Callable[[WeightMatrix], bool]] = {
    "all blocks": lambda matrix: True,
    "attention": lambda matrix: matrix.role == "attention",
    "feed-forward": lambda matrix: matrix.role == "ffn",
}
EIGHT_BITS = ("fp8", "int8")
FLOOR = 0.01  # nats: ratios of smaller differences are mostly noise of the sample


@dataclass(frozen=True)
class AddedLoss:
    """Added ``loss`` and ``divergence`` from the unquantized model, in nats of a label."""

    loss: float
    divergence: float


@dataclass(frozen=True)
class Row:
    """A format and its stand-in on one part of the blocks."""

    text: str
    part: str
    real: AddedLoss
    imitated: AddedLoss


class StandInEvaluator:
    """An unquantized model whose block matrices can be replaced, evaluated on fixed texts."""

    def __init__(self, ready: Calibration, batches: Sequence[Batch]) -> None:
        self._ready, self._batches = ready, batches
        self.blocks = block_matrices(ready.model)
        self._plain = {m.name: modules_of(ready.model, m.name, ready.matrices) for m in self.blocks}
        self._logs = [logs_NC for logs_NC, _ in self._predictions()]
        self.base = self._evaluated().loss

    @torch.no_grad()
    def _predictions(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Log-probabilities and labels of every batch, without positions that have no label."""
        for batch in self._batches:
            logits_NC, labels_N = self._ready.forward(self._ready.model, batch)
            kept = labels_N != IGNORED
            yield F.log_softmax(logits_NC[kept].float(), dim=-1), labels_N[kept]

    def _evaluated(self) -> AddedLoss:
        """Loss and divergence of the model as it is."""
        loss, divergence, count = 0.0, 0.0, 0
        for before_NC, (logs_NC, labels_N) in zip(self._logs, self._predictions(), strict=True):
            loss += float(F.nll_loss(logs_NC, labels_N, reduction="sum"))
            divergence += float(F.kl_div(logs_NC, before_NC, reduction="sum", log_target=True))
            count += len(labels_N)
        return AddedLoss(loss / count, divergence / count)

    def added(self, text: str, parts: Sequence[str]) -> dict[str, AddedLoss]:
        """Added loss and divergence of the format ``text`` on each of ``parts``."""
        made: dict[str, dict[str, nn.Module]] = {}
        for matrix in self.blocks:
            plain = self._plain[matrix.name]
            made[matrix.name] = with_weight(stored_in(plain[matrix.name], parse_format(text)), plain)
        found = {}
        for part in parts:
            chosen = [m.name for m in self.blocks if PARTS[part](m)]
            for name in chosen:
                swap_weights(self._ready.model, made[name])
            now = self._evaluated()
            found[part] = AddedLoss(now.loss - self.base, now.divergence)
            for name in chosen:
                swap_weights(self._ready.model, self._plain[name])
        return found


def main() -> None:
    """Measure the requested models; write the section of each again after every format."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", default=",".join(TASKS))
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--sequences", type=int, default=8, help="held-out texts of a language model")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    formats = arguments.formats.split(",")
    for name in arguments.models.split(","):
        given = {"model": name, "dtype": "fp32", "device": "cpu"}
        ready = calibration(make_spec(find_profile("laptop"), "B-FP", TASKS[name], given))
        torch.set_num_threads(arguments.threads)
        batches = _first(ready.held_out, arguments.sequences if name == "smollm2" else 256)
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        evaluator = StandInEvaluator(ready, batches)
        rows: list[Row] = []
        for text in formats:
            rows += _rows(evaluator, text)
            _write(name, evaluator.base, tokens, rows, {})
        eight = {text: evaluator.added(text, ["all blocks"])["all blocks"] for text in EIGHT_BITS}
        _write(name, evaluator.base, tokens, rows, eight)


def _first(batches: Sequence[Batch], sequences: int) -> list[Batch]:
    chosen: list[Batch] = []
    for batch in batches:
        if sum(len(one["labels"]) for one in chosen) >= sequences:
            break
        chosen.append(batch)
    return chosen


def _rows(evaluator: StandInEvaluator, text: str) -> list[Row]:
    real, imitated = (evaluator.added(name, list(PARTS)) for name in (text, f"noise16-{text}"))
    rows = [Row(text, part, real[part], imitated[part]) for part in PARTS]
    print(*rows, sep="\n", flush=True)
    return rows


def _write(name: str, base: float, tokens: int, rows: Sequence[Row], eight: dict[str, AddedLoss]) -> None:
    """Write the section of the model ``name``: agreement of both measures, and all values."""
    at_8 = [f"{text} {one.loss:+.4f} nats (divergence {one.divergence:.5f})" for text, one in eight.items()]
    cells = []
    for row in rows:
        pairs = ((row.real.loss, row.imitated.loss), (row.real.divergence, row.imitated.divergence))
        shown = [cell for real, imitated in pairs for cell in _shown(real, imitated)]
        cells.append((row.text, row.part, *shown))
    lines = [
        f"## {name}, {TASKS[name]}",
        "",
        f"Unquantized: {base:.4f} nats, {tokens:,} tokens. 8 bits on all blocks: "
        f"{', '.join(at_8) or 'not measured'}.",
        "",
        f"- Added loss: {_agreement([(row.real.loss, row.imitated.loss) for row in rows])}",
        f"- Divergence: {_agreement([(row.real.divergence, row.imitated.divergence) for row in rows])}",
        "",
        table(
            ("format", "part", "added loss", "stand-in", "ratio", "divergence", "stand-in", "ratio"), cells
        ),
    ]
    document = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Stand-ins\n"
    PAGE.write_text(replace_section(document, name, "\n".join(lines)), encoding="utf-8")


def _agreement(pairs: Sequence[tuple[float, float]]) -> str:
    """Spearman correlation over all pairs, and the mean ratio of those of at least :data:`FLOOR`."""
    order = spearmanr(*zip(*pairs, strict=True)).statistic
    logs = [math.log(imitated / real) for real, imitated in pairs if min(real, imitated) >= FLOOR]
    if not logs:
        return f"Spearman {order:.3f} over {len(pairs)} plans; no plan adds {FLOOR} nats."
    mean, least, most = (math.exp(value) for value in (sum(logs) / len(logs), min(logs), max(logs)))
    return (
        f"Spearman {order:.3f} over {len(pairs)} plans; stand-in over format {mean:.2f} in geometric mean "
        f"({least:.2f} to {most:.2f}) of {len(logs)} plans with at least {FLOOR} nats in both."
    )


def _shown(real: float, imitated: float) -> tuple[str, str, str]:
    ratio = f"{imitated / real:.2f}" if min(real, imitated) >= FLOOR else "–"
    return f"{real:.4f}", f"{imitated:.4f}", ratio


if __name__ == "__main__":
    main()
