"""One GPU session: plan and train two models at the bytes of B-Q4, beside B-Q4, B-FP and the peers.

    python benchmarks/gpu.py [--minutes 12] [--out FOLDER] [--rounds 2]
    python benchmarks/gpu.py --tiny                      the same steps on tiny models, on a CPU too

The models are SmolLM2 and a random Llama of the 1-billion class with its tokenizer; losses of the random one
mean nothing. For each: measure and plan (`bitrank plan --budget =B-Q4`), then train the plan, B-Q4 and B-FP,
and the tuned and the default peer of `peers.py`. No step starts after the time limit, and each is stopped at
it; what is missing is named. `gpu.json` in the folder is written after every step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import SideFailed, cores, figure_cell, ratio_cell, script, table, values

TASK = "wiki_articles"
# Shapes of a Llama with 1.2 billion parameters, as in Llama 3.2 1B but for the vocabulary of the tokenizer.
BILLION = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
OURS = ("plan", "B-Q4", "B-FP")
PEERS = (("B-Q4", "tuned"), ("B-FP", "tuned"), ("B-FP", "default"))
_REST = "no time left"


@dataclass
class Session:
    """Steps run one after the other until ``deadline`` (monotonic seconds), with their figures.

    ``found`` maps (model, side) to figures by round; a step that failed, or was not started, has the reason
    under ``failed``.
    """

    out: Path
    deadline: float
    found: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)

    def step(self, model: str, side: str, command: Sequence[str]) -> dict[str, Any]:
        """Run ``command``, which prints a JSON object of figures last; keep and return them."""
        started, left = time.monotonic(), self.deadline - time.monotonic()
        if left <= 0:
            figures: dict[str, Any] = {"failed": _REST}
        else:
            try:
                figures = _figures(command, left)
            except SideFailed as failure:
                figures = {"failed": str(failure)}
        self.found.setdefault(model, {}).setdefault(side, []).append(figures)
        (self.out / "gpu.json").write_text(json.dumps(self.found, indent=1))
        reason = figures.get("failed", "")
        print(f"{model} {side}: {reason or 'done'} [{time.monotonic() - started:.0f} s]", flush=True)
        return figures


def _figures(command: Sequence[str], seconds: float) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise SideFailed(_REST) from None
    found = _last_object(done.stdout)
    if done.returncode or found is None:
        lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        raise SideFailed(f"exit code {done.returncode}: {lines[-1][:300]}")
    return found


def _last_object(text: str) -> dict[str, Any] | None:
    """The JSON object with which ``text`` ends, on one line or indented; None without one."""
    lines = text.strip().splitlines()
    for first in range(len(lines) - 1, -1, -1):
        if lines[first].startswith("{"):
            try:
                return dict(json.loads("\n".join(lines[first:])))
            except ValueError:
                return None
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=12.0, help="time limit (default: 12)")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="folder for plans and figures")
    parser.add_argument("--rounds", type=int, default=2, help="trainings of each side (default: 2)")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of a training (default: 40)")
    parser.add_argument("--batch", type=int, default=16, help="sequences of a step (default: 16)")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few steps: checks this script")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    session = Session(arguments.out, time.monotonic() + 60 * arguments.minutes)
    with tempfile.TemporaryDirectory() as folder:
        shapes = {"random Llama": TINY if arguments.tiny else BILLION}
        models = {name: random_llama(Path(folder) / "llama", given) for name, given in shapes.items()}
        if not arguments.tiny:
            models = {"SmolLM2": None, **models}
        for name, model in models.items():
            measure_model(session, name, model, arguments)
    report = report_of(session.found)
    (arguments.out / "gpu.md").write_text(report)
    print(report)
    return 1 if missing(session.found) else 0


def random_llama(folder: Path, shapes: dict[str, int]) -> Path:
    """Save a Llama with random weights in bf16, and SmolLM2's tokenizer, to ``folder``."""
    import torch
    from bitrank.models.load import load_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer("smollm2")
    torch.manual_seed(0)
    options: dict[str, Any] = {**shapes, "vocab_size": len(tokenizer), "tie_word_embeddings": True}
    config = LlamaConfig(**options, dtype="bfloat16")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measure_model(session: Session, name: str, model: Path | None, arguments: argparse.Namespace) -> None:
    """Plan for one model, and train every side for the rounds."""
    steps, batch = (6, 2) if arguments.tiny else (arguments.steps, arguments.batch)
    chosen = [] if model is None else ["--model", str(model)]
    settings = ["--set", f"batch_size={batch}"]
    plan = session.out / f"{name.replace(' ', '-')}.json"
    command = ["-m", "bitrank", "plan", "--task", TASK, "--budget", "=B-Q4", "--save", str(plan), "--json"]
    session.step(name, "planning", [*command, *chosen, *settings])
    common = ["--task", TASK, "--steps", steps, "--threads", cores(), *chosen]
    for _ in range(arguments.rounds):
        for arm in OURS:
            named = ["--plan", plan] if arm == "plan" else ["--config", arm]
            session.step(name, arm, script("ours.py", *named, *common, *settings))
        for config, kind in PEERS:
            given = ["--peer", kind, "--config", config, "--batch", batch]
            session.step(name, f"{config} {kind} peer", script("peers.py", *given, *common))


def missing(found: dict[str, dict[str, list[dict[str, Any]]]]) -> list[str]:
    """``model side: reason`` of every step without figures."""
    return [
        f"{model}, {side}: {figures['failed']}"
        for model, sides in found.items()
        for side, rounds in sides.items()
        for figures in rounds
        if "failed" in figures
    ]


def report_of(found: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Planning seconds, and tokens/s and memory of every side, as Markdown."""
    parts = ["## GPU: plans at the bytes of B-Q4"]
    for model, sides in found.items():
        rows = []
        for side, rounds in sides.items():
            if side == "planning":
                continue
            tuned = sides.get(f"{'B-Q4' if side == 'plan' else side} tuned peer")
            ratio = ratio_cell(rounds, tuned, "wall_tok_s") if tuned and side in OURS else "–"
            cells = (figure_cell(rounds, key) for key in ("wall_tok_s", "device_mib", "peak_mib"))
            rows.append([side, *cells, ratio])
        head = ("side", "tokens/s", "device MiB", "process MiB", "÷ tuned peer")
        parts += [f"### {model}", planning_line(sides.get("planning", [])), table(head, rows)]
    if lost := missing(found):
        parts.append("Not measured: " + "; ".join(lost) + ".")
    parts.append(
        "Median (range) over rounds, after the warm-up. The plan is compared with the tuned peer of B-Q4."
    )
    return "\n\n".join(parts) + "\n"


def planning_line(rounds: Sequence[dict[str, Any]]) -> str:
    """The seconds of planning and the bytes of the plan."""
    try:
        (nbytes,) = values(rounds, "bytes")
    except (SideFailed, ValueError) as failure:
        return f"No plan: {failure}."
    seconds = rounds[0]["planning_seconds"]
    return (
        f"Plan of {nbytes:,.0f} bytes in a budget of {rounds[0]['budget']:,}: {seconds['measuring']:.1f} s "
        f"to measure, {seconds['choosing']:.1f} s to choose."
    )


if __name__ == "__main__":
    sys.exit(main())
