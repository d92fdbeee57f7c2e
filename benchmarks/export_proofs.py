"""Exports of a run in the programs that load them: bytes, losses, perplexity and tokens beside our own.

    python benchmarks/export_proofs.py RUN [--exports gguf+lora,gguf] [--articles 20] [--tokens 96]
        [--arithmetic bf16,fp32]

Exports the finished run RUN of a language model, and compares the client's losses of test articles and its
greedy tokens with our own evaluation of the exported weights, in fp32. ``+lora`` keeps the adapter apart.
llama.cpp is node-llama-cpp in the folder NODE_LLAMA_CPP; MLX is the package mlx with mlx-lm. Writes a section
for the run into ``docs/results/exports.md``.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from export_clients import (
    MLX_ARITHMETIC,
    Answers,
    Questions,
    behind,
    llama_cpp,
    mlx_lm,
    mlx_reference,
    rounded_inputs,
    text_losses,
)
from harness import HERE, table, write_section

PAGE = HERE.parent / "docs/results/exports.md"
APART = "+lora"


@dataclass(frozen=True)
class Compared:
    """A client beside an evaluation of ours on the same tokens.

    ``ours`` and ``theirs`` are mean losses in nats; ``equal`` counts prompts with equal greedy tokens, and
    ``gap`` is the largest logit by which a token of the client is behind our first one.
    """

    arithmetic: str
    ours: float
    theirs: float
    equal: int
    prompts: int
    gap: float


@dataclass(frozen=True)
class Proof:
    """One export: its audit, bytes of its model file, and comparisons with its client."""

    export: str
    planned: int
    tensors: int
    adapter: int
    header: int
    before: float
    rounded: float | None
    after: float
    compared: list[Compared]


def compare(arithmetic: str, model: Any, questions: Questions, found: Answers) -> Compared:
    """``found`` beside the evaluation of ``model``."""
    ours = text_losses(model, questions.texts)
    pairs = zip(questions.prompts, found.greedy, strict=True)
    gaps = [max(behind(model, prompt, made)) for prompt, made in pairs]
    equal = sum(gap == 0 for gap in gaps)
    return Compared(arithmetic, _mean(ours), _mean(found.losses), equal, len(gaps), max(gaps))


def _mean(losses: Sequence[Sequence[float]]) -> float:
    return sum(map(sum, losses)) / sum(map(len, losses))


def gguf_comparisons(run: Any, prepared: Any, folder: Path, questions: Questions) -> list[Compared]:
    """llama.cpp beside the file as transformers reads it, with exact inputs and with llama.cpp's rounding."""
    from bitrank.export.gguf.prepare import MODEL_FILE
    from bitrank_quant import tied_modules
    from transformers import AutoModelForCausalLM

    found = llama_cpp(folder, questions)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=MODEL_FILE, dtype=torch.float32).eval()
    updates_OI = _gguf_updates(run, model, folder)
    types = {name: row.stored for name, row in prepared.audit.matrices.items()}
    types |= {name: types[owner] for name, owner in tied_modules(model).items()}
    rounded = compare("inputs in 8 bits", rounded_inputs(model, types, updates_OI), questions, found)
    exact_types = dict.fromkeys(types, "F32")
    exact = AutoModelForCausalLM.from_pretrained(folder, gguf_file=MODEL_FILE, dtype=torch.float32).eval()
    return [compare("exact", rounded_inputs(exact, exact_types, updates_OI), questions, found), rounded]


def _gguf_updates(run: Any, model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Updates by the adapter file, (out, in); empty if the adapter is in the model file."""
    from bitrank.export.gguf.prepare import ADAPTER_FILE, exported_weights
    from bitrank.export.rebuild import rebuild

    if not (folder / ADAPTER_FILE).is_file():
        return {}
    rebuilt = rebuild(run)
    adapted_OI = exported_weights(rebuilt, True)
    names = [name for name in adapted_OI if rebuilt.rank(name)]
    return {name: adapted_OI[name] - model.get_submodule(name).weight.detach() for name in names}


def mlx_comparisons(run: Any, prepared: Any, folder: Path, questions: Questions) -> list[Compared]:
    """mlx-lm beside transformers with the weights of the file, decoded by ``mlx.dequantize``."""
    model = mlx_reference(run.spec.model_source, folder)
    return [
        compare(name, model, questions, mlx_lm(folder, questions, name)) for name in questions.mlx_arithmetic
    ]


@dataclass(frozen=True)
class Target:
    """The client's comparisons, the model file of an export, and the bytes of its tensors."""

    comparisons: Callable[[Any, Any, Path, Questions], list[Compared]]
    file: str
    tensor_bytes: Callable[[Path], int]


def _gguf_bytes(path: Path) -> int:
    import gguf

    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)


def _safetensors_bytes(path: Path) -> int:
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    return path.stat().st_size - header - 8


TARGETS = {
    "gguf": Target(gguf_comparisons, "model.gguf", _gguf_bytes),
    "mlx": Target(mlx_comparisons, "model.safetensors", _safetensors_bytes),
}


def prove(run: Any, export: str, quantizer: str, questions: Questions, out: Path) -> Proof:
    """Export ``run`` to ``export`` (a target, with :data:`APART` or without) in ``out``, and compare it."""
    from bitrank.export.prepared import Options, write_export
    from bitrank.export.rebuild import rebuild
    from bitrank.export.registry import EXPORTS

    name = export.removesuffix(APART)
    prepared = EXPORTS[name].prepare(rebuild(run), Options(name, export.endswith(APART), quantizer))
    write_export(prepared, out)
    audit, target = prepared.audit, TARGETS[name]
    path = out / target.file
    tensors = target.tensor_bytes(path)
    rounded = audit.rounded["loss"] if audit.rounded else None
    return Proof(
        export=export,
        planned=audit.planned_bytes,
        tensors=tensors,
        adapter=audit.weight_bytes - tensors,
        header=path.stat().st_size - tensors,
        before=audit.before["loss"],
        rounded=rounded,
        after=audit.after["loss"],
        compared=target.comparisons(run, prepared, out, questions),
    )


def questions_of(run: Any, arguments: argparse.Namespace) -> Questions:
    """The first tokens of test articles at equal distances; prompts are the beginnings of the first ones.

    Raises ``SystemExit`` if too few articles are long enough.
    """
    from bitrank.run.data import load_data

    split = load_data(run.spec).task.splits["test"]
    first = {}  # window of each article with its first tokens
    for index in range(len(split)):
        first.setdefault(split.ids[index], index)
    long = [index for index in first.values() if split.lengths_N[index] >= arguments.tokens]
    if len(long) < arguments.articles:
        raise SystemExit(f"only {len(long)} articles have {arguments.tokens} tokens; give fewer --articles")
    chosen = long[:: len(long) // arguments.articles][: arguments.articles]
    texts = [split.sequence(index)[: arguments.tokens].tolist() for index in chosen]
    prompts = [text[: arguments.prompt] for text in texts[: arguments.prompts]]
    return Questions(texts, prompts, arguments.continuation, tuple(arguments.arithmetic))


def result_text(run: Any, proofs: Sequence[Proof], questions: Questions) -> str:
    """The section of ``run``: tables of bytes, of losses by the export, and of client and ours."""
    formats: dict[str, int] = {}
    for text in (run.precision or {}).values():
        formats[text] = formats.get(text, 0) + 1
    counted = ", ".join(f"{count} × {name}" for name, count in sorted(formats.items()))
    head = f"## {run.spec.model}: {counted}"
    tokens = sum(len(text) - 1 for text in questions.texts)
    note = (
        f"{run.spec.steps} steps of training; ranks of {min(run.ranks.values())} to "
        f"{max(run.ranks.values())}. Perplexity of {len(questions.texts)} test articles ({tokens:,} "
        f"predicted tokens); {len(questions.prompts)} prompts of {len(questions.prompts[0])} tokens, "
        f"{questions.count} greedy tokens after each."
    )
    sizes = [
        (
            p.export,
            *(f"{size:,}" for size in (p.planned, p.tensors, p.tensors - p.planned, p.header, p.adapter)),
        )
        for p in proofs
    ]
    losses = [
        (p.export, f"{p.before:.4f}", _added(p.rounded, p.before), _added(p.after, p.before)) for p in proofs
    ]
    rows = [
        (
            p.export,
            c.arithmetic,
            f"{math.exp(c.ours):.3f}",
            f"{math.exp(c.theirs):.3f}",
            f"{100 * math.expm1(c.theirs - c.ours):+.2f} %",
            f"{c.equal} of {c.prompts}",
            f"{c.gap:.3g}",
        )
        for p in proofs
        for c in p.compared
    ]
    bytes_head = ("export", "planned base", "tensors in the file", "difference", "header", "adapter file")
    loss_head = ("export", "validation loss of the run", "added by rounding", "added by the export")
    client_head = (
        "export", "arithmetic", "perplexity, ours", "perplexity, client", "difference",
        "prompts with equal tokens", "largest logit gap",
    )  # fmt: skip
    return "\n\n".join(
        [head, note, table(bytes_head, sizes), table(loss_head, losses), table(client_head, rows)]
    )


def _added(loss: float | None, before: float) -> str:
    return "–" if loss is None else f"{loss - before:+.4f}"


def main() -> int:
    from bitrank.export.finished_run import find_run

    arguments = _parse()
    torch.set_num_threads(1)
    run = find_run(arguments.run)
    questions = questions_of(run, arguments)
    proofs = []
    for export in arguments.exports:
        with TemporaryDirectory() as folder:
            proofs.append(prove(run, export, arguments.quantizer, questions, Path(folder) / "out"))
        print(proofs[-1], flush=True)
    write_section(
        arguments.section or arguments.run.resolve().name,
        result_text(run, proofs, questions),
        arguments.results,
    )
    return 0


def _parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a finished run of a language model")
    parser.add_argument("--exports", type=_known, default=["gguf+lora", "gguf"], help="comma-separated")
    parser.add_argument("--quantizer", default="gptq", help="codes of a folded adapter (default: gptq)")
    parser.add_argument("--arithmetic", type=_arithmetic, default=["bf16", "fp32"], help="of mlx-lm")
    parser.add_argument("--section", default="", help="name of the section (default: the run's id)")
    parser.add_argument("--articles", type=int, default=20, help="test articles (default: 20)")
    parser.add_argument("--tokens", type=int, default=96, help="tokens of each (default: 96)")
    parser.add_argument("--prompts", type=int, default=6, help="prompts (default: 6)")
    parser.add_argument("--prompt", type=int, default=24, help="tokens of a prompt (default: 24)")
    parser.add_argument("--continuation", type=int, default=20, help="tokens to generate (default: 20)")
    parser.add_argument("--results", type=Path, default=PAGE, help="file whose section is replaced")
    return parser.parse_args(given)


def _known(text: str) -> list[str]:
    return _names(text, [name + end for name in TARGETS for end in ("", APART)])


def _arithmetic(text: str) -> list[str]:
    return _names(text, list(MLX_ARITHMETIC))


def _names(text: str, known: Sequence[str]) -> list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, got {', '.join(unknown)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
