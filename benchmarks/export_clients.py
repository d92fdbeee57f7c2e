"""The programs that load an export, asked for losses of texts and for greedy tokens; and our own evaluation.

llama.cpp rounds the inputs of products with quantized matrices to 8 bits in blocks. :func:`rounded_inputs`
does the same in our evaluation, so that a difference by this arithmetic is distinguished from a wrong file.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_CLIENT = Path(__file__).resolve().parents[1] / "orchestrator/tests/export/gguf/client.mjs"
_PACKAGE = "node_modules/node-llama-cpp"
_BLOCK, _LARGE_BLOCK = 32, 256  # weights of a block of Q4_0 to Q8_0, and of the K types


@dataclass(frozen=True)
class Answers:
    """``losses``: nats of each token of each text after its first; ``greedy``: tokens after each prompt."""

    losses: list[list[float]]
    greedy: list[list[int]]


@dataclass(frozen=True)
class Questions:
    """Texts and prompts as token ids, and the number of tokens to generate after each prompt."""

    texts: list[list[int]]
    prompts: list[list[int]]
    count: int


def llama_cpp(folder: Path, questions: Questions) -> Answers:
    """llama.cpp through the npm package node-llama-cpp in the folder NODE_LLAMA_CPP."""
    from bitrank.export.gguf.prepare import ADAPTER_FILE, MODEL_FILE

    package = Path(os.environ.get("NODE_LLAMA_CPP", ".")).resolve() / _PACKAGE
    if not package.is_dir():
        raise SystemExit("set NODE_LLAMA_CPP to the folder of npm install node-llama-cpp@3.21.1")
    adapter = folder / ADAPTER_FILE
    request = {
        "package": str(package),
        "model": str(folder / MODEL_FILE),
        "lora": str(adapter) if adapter.is_file() else None,
        "texts": [],
        "prompts": questions.prompts,
        "count": questions.count,
        "sequences": questions.texts,
    }
    command = ["node", str(_CLIENT)]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"llama.cpp ended with code {done.returncode}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    return Answers(found["losses"], found["greedy"])


def mlx_lm(folder: Path, questions: Questions, fp32: bool = False) -> Answers:
    """mlx-lm, in the bf16 of the file or in ``fp32``."""
    import mlx.core as mx
    import mlx.nn as mlx_nn
    from bitrank.export.mlx import ADAPTERS
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    adapter = folder / ADAPTERS
    model = load(str(folder), adapter_path=str(adapter) if adapter.is_dir() else None)[0]
    if fp32:
        model.set_dtype(mx.float32)
    losses = []
    for ids in questions.texts:
        logits = model(mx.array([ids]))[0, :-1].astype(mx.float32)
        losses.append(mlx_nn.losses.cross_entropy(logits, mx.array(ids[1:])).tolist())
    greedy = []
    for prompt in questions.prompts:
        steps = generate_step(mx.array(prompt), model, max_tokens=questions.count)
        greedy.append([int(token) for token, _ in steps])
    return Answers(losses, greedy)


def text_losses(model: Any, texts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Our losses of ``texts`` in nats, as :class:`Answers` has them."""
    found = []
    for ids in texts:
        targets = torch.tensor(ids[1:])
        losses = functional.cross_entropy(_logits(model, ids)[:-1], targets, reduction="none")
        found.append(losses.tolist())
    return found


def behind(model: Any, prompt: Sequence[int], made: Sequence[int]) -> list[float]:
    """For each token of ``made`` after ``prompt``, its logit below our largest one; 0 if it is our choice.

    All zeros: our greedy continuation is ``made``.
    """
    logits_TV = _logits(model, [*prompt, *made])[len(prompt) - 1 : -1]
    chosen_T = logits_TV.gather(1, torch.tensor([list(made)]).T)[:, 0]
    found: list[float] = (logits_TV.max(dim=1).values - chosen_T).tolist()
    return found


def _logits(model: Any, ids: Sequence[int]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([list(ids)])).logits[0].float()
    return logits


def _by_block(values: Tensor, block: int, scale_dtype: torch.dtype) -> Tensor:
    """``values`` in 8 bits with one scale per ``block``, as ggml rounds them (``quantize_row_q8_0``)."""
    blocks = values.reshape(-1, block)
    scale = blocks.abs().amax(dim=1, keepdim=True) / 127
    codes = torch.where(scale > 0, blocks / scale, 0.0).round()
    return (codes * scale.to(scale_dtype).float()).reshape(values.shape)


def rounding_of(tensor_type: str) -> Callable[[Tensor], Tensor]:
    """How llama.cpp rounds the input of a product with a matrix of ``tensor_type``."""
    if tensor_type in {"F32", "F16", "BF16"}:
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[tensor_type]
        return lambda values: values.to(dtype).float()
    if tensor_type.endswith("_K"):
        return lambda values: _by_block(values, _LARGE_BLOCK, torch.float32)
    return lambda values: _by_block(values, _BLOCK, torch.float16)


class _RoundedInput(nn.Module):
    """A linear layer whose base multiplies rounded inputs, beside an update that multiplies exact ones."""

    def __init__(
        self, base: nn.Linear, update_OI: Tensor | None, rounding: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.base, self._update_OI, self._rounding = base, update_OI, rounding

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.base(self._rounding(values))
        return result if self._update_OI is None else result + functional.linear(values, self._update_OI)


def rounded_inputs(model: Any, types: Mapping[str, str], updates_OI: Mapping[str, Tensor]) -> Any:
    """``model`` with the inputs of its linear layers rounded as llama.cpp does.

    ``types`` has the tensor type of every layer by name; ``updates_OI`` are updates of adapters that stay
    apart, (out, in).
    """
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name, module in linear:
        rounded = _RoundedInput(module, updates_OI.get(name), rounding_of(types[name]))
        model.set_submodule(name, rounded)
    return model
