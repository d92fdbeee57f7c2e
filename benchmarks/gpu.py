"""One GPU session: plan and train two models at the bytes of B-Q4, beside B-Q4, B-FP and the peers.

    python benchmarks/gpu.py [--minutes 12] [--out FOLDER] [--steps 33]
    python benchmarks/gpu.py --tiny                      the same on a tiny model, on a CPU too

The models are SmolLM2 and a random Llama of the 1-billion class with its tokenizer; losses of the random one
mean nothing. For each: measure and plan (`bitrank plan --budget '=B-Q4'`), then train the plan, B-Q4 (with
and without CUDA graphs) and B-FP, and the tuned and the default peer of `peers.py`. All sides of a model are
processes on the same GPU and take turns, step by step (`turns.py`). Both models are planned at once. No part
starts after the time limit, and each is stopped at it; what is missing is named. `gpu.json` in the folder is
written after every part.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import WARM_UP, Figures, SideFailed, cores, script, table
from turns import Sides

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
PEERS = (("B-Q4", "tuned"), ("B-FP", "tuned"), ("B-FP", "default"))
PLAIN = "B-Q4 without graphs"
_REST = "no time left"
_PLANNING = 0.5  # largest share of the time; a model without a plan trains its other sides


Found = dict[str, dict[str, Any]]
"""Per model: figures of ``planning``, or ``{"failed": reason}``; and ``sides``, see :func:`train_sides`."""


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
    parser.add_argument("--steps", type=int, default=33, help="steps of each side (default: 33)")
    parser.add_argument("--batch", type=int, default=16, help="sequences of a step (default: 16)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, few steps: checks this script")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * arguments.minutes
    if arguments.tiny:
        arguments.steps, arguments.batch = WARM_UP + 3, 2
    with tempfile.TemporaryDirectory() as folder:
        shapes = {"random Llama": TINY if arguments.tiny else BILLION}
        models = {name: random_llama(Path(folder) / "llama", given) for name, given in shapes.items()}
        if not arguments.tiny:
            models = {"SmolLM2": None, **models}
        found = measure(models, arguments, deadline)
    report = report_of(found)
    (arguments.out / "gpu.md").write_text(report)
    print(report)
    return 1 if missing(found) else 0


def measure(models: dict[str, Path | None], arguments: argparse.Namespace, deadline: float) -> Found:
    """Plan for all models at once, then let the sides of each take turns."""
    found: Found = {name: {} for name in models}
    planned_by = time.monotonic() + _PLANNING * (deadline - time.monotonic())
    with ThreadPoolExecutor() as pool:
        planned = {
            name: pool.submit(plan, name, model, arguments, planned_by) for name, model in models.items()
        }
    for name, figures in planned.items():
        found[name]["planning"] = figures.result()
    for name, model in models.items():
        _write(found, arguments.out)
        found[name]["sides"] = train_sides(name, model, arguments, deadline)
        print(f"{name}: {len(found[name]['sides']['steps'])} sides", flush=True)
    _write(found, arguments.out)
    return found


def _write(found: Found, folder: Path) -> None:
    (folder / "gpu.json").write_text(json.dumps(found, indent=1))


def plan(name: str, model: Path | None, arguments: argparse.Namespace, deadline: float) -> Figures:
    """Measure and plan one model; the plan goes to the folder of results."""
    chosen = [] if model is None else ["--model", str(model)]
    command = ["-m", "bitrank", "plan", "--task", TASK, "--budget", "=B-Q4", "--json"]
    command += ["--save", str(plan_path(name, arguments)), "--set", f"batch_size={arguments.batch}", *chosen]
    left = max(1.0, deadline - time.monotonic())
    try:
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, timeout=left, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": _REST}
    made = _last_object(done.stdout)
    if done.returncode or made is None:
        lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        return {"failed": f"exit code {done.returncode}: {lines[-1][:300]}"}
    return made


def plan_path(name: str, arguments: argparse.Namespace) -> Path:
    return Path(arguments.out / f"{name.replace(' ', '-')}.json")


def train_sides(name: str, model: Path | None, arguments: argparse.Namespace, deadline: float) -> Figures:
    """``steps`` of each side after the warm-up, as many as fit, and ``failed``: reasons by side."""
    common = ["--task", TASK, "--steps", arguments.steps, "--threads", max(1, cores() // 8)]
    common += [] if model is None else ["--model", model]
    settings = ["--set", f"batch_size={arguments.batch}"]
    commands = {
        "plan": script("turns.py", plan_path(name, arguments), *common, *settings),
        "B-Q4": script("turns.py", "--config", "B-Q4", *common, *settings),
        PLAIN: script("turns.py", "--config", "B-Q4", *common, *settings),
        "B-FP": script("turns.py", "--config", "B-FP", *common, *settings),
    }
    if not plan_path(name, arguments).exists():
        del commands["plan"]
    for config, kind in PEERS:
        given = ("--turns", "--peer", kind, "--config", config, "--batch", arguments.batch)
        commands[f"{config} {kind} peer"] = script("peers.py", *given, *common)
    environments = [{**os.environ, "BITRANK_CUDA_GRAPHS": "0" if side == PLAIN else "1"} for side in commands]
    names, steps, failed = list(commands), dict[int, list[Figures]](), dict[int, SideFailed]()
    reason = ""
    try:
        with (
            time_limit(max(0.1, deadline - time.monotonic())),
            Sides(list(commands.values()), environments) as sides,
        ):
            failed = sides.wait()
            for number in range(arguments.steps):
                for side, figures in sides.step(number).items():
                    steps.setdefault(side, []).append(figures)
    except SideFailed as failure:
        reason = str(failure)
    lost = {names[side]: str(why) for side, why in failed.items()}
    lost |= {"steps": reason} if reason else {}
    kept = {names[side]: made[WARM_UP:] for side, made in sorted(steps.items()) if len(made) > WARM_UP + 1}
    return {"steps": kept, "failed": lost}


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`SideFailed` inside after ``seconds``."""

    def stop(*_: object) -> None:
        raise SideFailed(_REST)

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


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


def missing(found: Found) -> list[str]:
    """``model, part: reason`` of everything without figures."""
    lost = []
    for model, parts in found.items():
        if "failed" in parts["planning"]:
            lost.append(f"{model}, planning: {parts['planning']['failed']}")
        lost += [f"{model}, {side}: {why}" for side, why in parts["sides"]["failed"].items()]
    return lost


def report_of(found: Found) -> str:
    """Planning seconds, and tokens/s and memory of every side, as Markdown."""
    parts = ["## GPU: plans at the bytes of B-Q4"]
    for model, figures in found.items():
        parts += [f"### {model}", planning_line(figures["planning"])]
        if steps := figures["sides"]["steps"]:
            parts.append(sides_table(steps))
    if lost := missing(found):
        parts.append("Not measured: " + "; ".join(lost) + ".")
    parts.append(
        f"Tokens/s over all steps after the first {WARM_UP}; ratios of paired steps, median (quartiles). The "
        "plan is compared with the tuned peer of B-Q4. Memory: peak of the GPU (all that torch reserved) and "
        "of the process. Both models were planned at the same time."
    )
    return "\n\n".join(parts) + "\n"


def sides_table(sides: dict[str, list[Figures]]) -> str:
    """One row per side: tokens/s, memory, and its speed over that of a tuned peer."""
    rows = []
    for side, steps in sides.items():
        speed = sum(step["tokens"] for step in steps) / sum(step["seconds"] for step in steps)
        milliseconds = 1000 * statistics.median(step["seconds"] for step in steps)
        config = "B-FP" if side.startswith("B-FP") else "B-Q4"
        tuned = sides.get(f"{config} tuned peer", steps)
        ratio = "–" if tuned is steps else quartiles(steps, tuned)
        memory = (f"{steps[-1][key]:,.0f}" for key in ("device_mib", "peak_mib"))
        rows.append([side, f"{speed:,.0f}", f"{milliseconds:,.1f}", *memory, ratio])
    return table(("side", "tokens/s", "ms per step", "device MiB", "process MiB", "÷ tuned peer"), rows)


def quartiles(ours: Sequence[Figures], theirs: Sequence[Figures]) -> str:
    """Median and quartiles of the ratio of tokens/s over paired steps; a time limit may end between two."""
    ratios = [
        a["tokens"] / a["seconds"] * b["seconds"] / b["tokens"] for a, b in zip(ours, theirs, strict=False)
    ]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def planning_line(figures: Figures) -> str:
    """The seconds of planning and the bytes of the plan."""
    if "failed" in figures:
        return f"No plan: {figures['failed']}."
    seconds = figures["planning_seconds"]
    return (
        f"Plan of {figures['bytes']:,.0f} bytes in a budget of {figures['budget']:,}: "
        f"{seconds['measuring']:.1f} s to measure, {seconds['choosing']:.1f} s to choose."
    )


if __name__ == "__main__":
    sys.exit(main())
