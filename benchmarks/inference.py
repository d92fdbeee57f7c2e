"""Speed and memory of generation from every export of a run, each in its own client, beside our own.

    python benchmarks/inference.py RUN [--rounds 3] [--prompt 64] [--tokens 64] [--targets merged,gguf]

Exports the finished run RUN (its folder) to every target, and generates greedily from one prompt of fixed
token ids in a new process for each client. Clients alternate, so that a machine that is busy for a while
favours none. A warm-up of a few tokens is not counted. llama.cpp is the npm package node-llama-cpp in the
folder NODE_LLAMA_CPP; clients that are not installed are listed as failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness import (
    HERE,
    RESULTS,
    Figures,
    SideFailed,
    alternate,
    cores,
    figure_cell,
    machine,
    machine_line,
    ratio_cell,
    report_failures,
    run_scripts,
    script,
    table,
    write_section,
)

OURS = "ours"
WARM_UP = 4  # tokens
_LOWEST, _HIGHEST = 10, 250  # token ids of the prompt, which every vocabulary has
_MIB = 2**20


@dataclass(frozen=True)
class Request:
    """A generation: the exported ``folder`` (of :data:`OURS`, the run's), the 16-bit ``base``, and sizes."""

    folder: Path
    base: str
    prompt: list[int]
    tokens: int
    threads: int


def ours(request: Request) -> Figures:
    """The run's own quantized base with its adapter attached, without any export."""
    from bitrank.export.finished_run import find_run
    from bitrank.export.rebuild import rebuild

    return _torch_figures(rebuild(find_run(request.folder)).model, request)


def transformers_model(request: Request) -> Figures:
    """A folder that transformers loads."""
    from transformers import AutoModelForCausalLM

    return _torch_figures(AutoModelForCausalLM.from_pretrained(request.folder), request)


def peft_model(request: Request) -> Figures:
    """The adapter over the unquantized base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(request.base)
    return _torch_figures(PeftModel.from_pretrained(base, request.folder), request)


def mlx_model(request: Request) -> Figures:
    """mlx-lm on the CPU."""
    import mlx.core as mx
    from bitrank_trainer import peak_memory_mib
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    model = load(str(request.folder))[0]

    def generate(count: int) -> int:
        step = generate_step(mx.array(request.prompt), model, max_tokens=count)
        return sum(1 for _ in islice(step, count))

    return _timed(generate, request.tokens) | {"peak_mib": peak_memory_mib()}


def llama_cpp(request: Request) -> Figures:
    """llama.cpp through node-llama-cpp."""
    package = Path(os.environ.get("NODE_LLAMA_CPP", ".")).resolve() / "node_modules/node-llama-cpp"
    if not package.is_dir():
        raise SystemExit("set NODE_LLAMA_CPP to the folder of npm install node-llama-cpp@3.21.1")
    from bitrank.export.gguf.prepare import MODEL_FILE

    asked = {
        "package": str(package),
        "model": str(request.folder / MODEL_FILE),
        "prompt": request.prompt,
        "count": request.tokens,
        "warmUp": WARM_UP,
        "threads": request.threads,
    }
    done = subprocess.run(
        ["node", str(HERE / "inference_client.mjs")],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


# Target of `bitrank export`, or OURS → client that generates from it.
CLIENTS: dict[str, Callable[[Request], Figures]] = {
    OURS: ours,
    "merged": transformers_model,
    "peft": peft_model,
    "compressed-tensors": transformers_model,
    "mlx": mlx_model,
    "gguf": llama_cpp,
}


def _torch_figures(model: Any, request: Request) -> Figures:
    import torch
    from bitrank_trainer import peak_memory_mib
    from transformers import GenerationConfig

    torch.set_num_threads(request.threads)
    ids_BT = torch.tensor([request.prompt])
    # A checkpoint's own settings may ask for beams or penalties, and its end token would shorten texts.
    model.generation_config = GenerationConfig(do_sample=False, num_beams=1, use_cache=True)

    def generate(count: int) -> int:
        made_BT = model.eval().generate(
            input_ids=ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            max_new_tokens=count,
        )
        return int(made_BT.shape[1] - ids_BT.shape[1])

    with torch.no_grad():
        return _timed(generate, request.tokens) | {"peak_mib": peak_memory_mib()}


def _timed(generate: Callable[[int], int], tokens: int) -> Figures:
    """Tokens/s of ``generate(tokens)``, the processing of the prompt included, after a warm-up."""
    generate(WARM_UP)
    started = time.perf_counter()
    made = generate(tokens)
    return {"tokens": made, "tok_s": made / (time.perf_counter() - started)}


def main() -> int:
    arguments = _parse()
    if arguments.client:
        import numpy as np

        draw = np.random.default_rng(0)
        prompt = draw.integers(_LOWEST, _HIGHEST, arguments.prompt).tolist()
        request = Request(arguments.run, arguments.base, prompt, arguments.tokens, arguments.threads)
        print(json.dumps(CLIENTS[arguments.client](request)))
        return 0
    return _compare(arguments)


def _compare(arguments: argparse.Namespace) -> int:
    from bitrank.export.finished_run import find_run
    from bitrank.models.locate import locate

    base = str(locate(find_run(arguments.run).spec.model_source))
    threads = cores()
    here = machine(threads)
    with TemporaryDirectory() as folder:
        sides, sizes = {}, {}
        for target in dict.fromkeys([OURS, *arguments.targets]):
            out = arguments.run if target == OURS else Path(folder) / target
            sides[target] = partial(_side, target, out, base, arguments, threads)
            if target != OURS and (reason := _export(arguments.run, target, out)):
                sides[target] = partial(_not_exported, reason)
            files = out.rglob("*") if target != OURS and out.is_dir() else ()
            sizes[target] = sum(path.stat().st_size for path in files if path.is_file())
        found = alternate(sides, arguments.rounds)
    note = (
        f"One greedy generation of {arguments.tokens} tokens after {arguments.prompt} given ones, the prompt "
        f"included in the time; rounds: {arguments.rounds}, median (range). *peak* is of the whole process. "
        "mlx-lm chooses its own threads."
    )
    text = ["## Inference from exports", machine_line(here), result_table(found, sizes), note]
    write_section("inference", "\n\n".join(text), arguments.results)
    return report_failures(found)


def result_table(found: dict[str, list[Figures]], sizes: dict[str, int]) -> str:
    """A row for each target: speed, ratio to ours by round, peak memory, and size of the exported files."""
    rows = [
        [
            target,
            figure_cell(rounds, "tok_s", 1),
            ratio_cell(rounds, found[OURS], "tok_s"),
            figure_cell(rounds, "peak_mib"),
            f"{sizes[target] / _MIB:,.0f}" if sizes[target] else "–",
        ]
        for target, rounds in found.items()
    ]
    return table(("export", "tok/s", "÷ ours", "peak MiB", "files MiB"), rows)


def _side(target: str, folder: Path, base: str, arguments: argparse.Namespace, threads: int) -> Figures:
    command = script(
        "inference.py", folder, "--client", target, "--base", base, "--threads", threads,
        "--prompt", arguments.prompt, "--tokens", arguments.tokens,
    )  # fmt: skip
    return run_scripts(command, environment={"OMP_NUM_THREADS": str(threads)})[0]


def _not_exported(reason: str) -> Figures:
    raise SideFailed(reason)


def _export(run: Path, target: str, out: Path) -> str:
    """Export ``run``; the reason if that failed, else an empty text."""
    command = ["-m", "bitrank", "export", str(run), "--to", target, "--out", str(out), "--force"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    lines = (done.stderr.strip() or "no message").splitlines()
    return f"export to {target}: {lines[-1]}" if done.returncode else ""


def _parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a finished run of a language model")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each client (default: 3)")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt (default: 64)")
    parser.add_argument("--tokens", type=int, default=64, help="generated tokens (default: 64)")
    parser.add_argument("--targets", type=_known, default=_exported(CLIENTS), help="exports, comma-separated")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file whose section is replaced")
    for name in ("--client", "--base"):  # of a side's process
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    return parser.parse_args(given)


def _exported(names: Iterable[str]) -> list[str]:
    return [name for name in names if name != OURS]


def _known(text: str) -> list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := [name for name in names if name not in CLIENTS]:
        known = ", ".join(_exported(CLIENTS))
        raise argparse.ArgumentTypeError(f"expected targets among {known}, got {', '.join(unknown)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
