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
_FACTORS = "adapters.safetensors"
_PACKAGE = "node_modules/node-llama-cpp"
_BLOCK, _LARGE_BLOCK = 32, 256  # weights of a block of Q4_0 to Q8_0, and of the K types


@dataclass(frozen=True)
class Answers:
    """``losses``: nats of each token of each text after its first; ``greedy``: tokens after each prompt."""

    losses: list[list[float]]
    greedy: list[list[int]]


@dataclass(frozen=True)
class Questions:
    """Texts and prompts as token ids, and the number of tokens to generate after each prompt.

    ``mlx_arithmetic`` are keys of :data:`MLX_ARITHMETIC`.
    """

    texts: list[list[int]]
    prompts: list[list[int]]
    count: int
    mlx_arithmetic: tuple[str, ...] = ("bf16", "fp32")


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


def _as_loaded(model: Any) -> None:
    """The bf16 of the file, in which people run it."""


def _in_fp32(model: Any) -> None:
    import mlx.core as mx

    model.set_dtype(mx.float32)


def _dequantized(model: Any) -> None:
    """Dense fp32 matrices, decoded by mlx-lm: on a CPU a hundred times as fast as its packed products."""
    from mlx_lm.utils import dequantize_model

    _in_fp32(model)  # before: the decoded matrices have the dtype of their scales
    dequantize_model(model)


# Arithmetic of mlx-lm → change of the loaded model.
MLX_ARITHMETIC: dict[str, Callable[[Any], None]] = {
    "bf16": _as_loaded,
    "fp32": _in_fp32,
    "fp32-dequantized": _dequantized,
}


def mlx_lm(folder: Path, questions: Questions, arithmetic: str) -> Answers:
    """mlx-lm with a key of :data:`MLX_ARITHMETIC`."""
    import mlx.core as mx
    import mlx.nn as mlx_nn
    from bitrank.export.mlx import ADAPTERS
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    adapter = folder / ADAPTERS
    model = load(str(folder), adapter_path=str(adapter) if adapter.is_dir() else None)[0]
    MLX_ARITHMETIC[arithmetic](model)
    losses = []
    for ids in questions.texts:
        logits = model(mx.array([ids]))[0, :-1].astype(mx.float32)
        losses.append(mlx_nn.losses.cross_entropy(logits, mx.array(ids[1:])).tolist())
    greedy = []
    for prompt in questions.prompts:
        steps = generate_step(mx.array(prompt), model, max_tokens=questions.count)
        greedy.append([int(token) for token, _ in steps])
    return Answers(losses, greedy)


def mlx_reference(source: str, folder: Path) -> Any:
    """The base ``source`` in transformers, in fp32, with the weights of exported files, adapter included."""
    from bitrank.export.mlx import ADAPTERS
    from bitrank.export.packed import WEIGHTS
    from bitrank.models.locate import locate
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base = str(locate(source))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tensors = load_file(folder / WEIGHTS)
    factors = load_file(folder / ADAPTERS / _FACTORS) if (folder / ADAPTERS).is_dir() else {}
    quantization = json.loads((folder / "config.json").read_text())["quantization"]
    with torch.no_grad():
        for parameter, values in model.named_parameters():
            name = parameter.removesuffix(".weight")
            packed = name in quantization
            exported = _decoded(tensors, name, quantization) if packed else tensors[parameter].float()
            if f"{name}.lora_a" in factors:
                down_IR, up_RO = (factors[f"{name}.lora_{part}"].float() for part in "ab")
                exported = exported + (down_IR @ up_RO).T
            values.copy_(exported)
    return model


def _decoded(tensors: Mapping[str, Tensor], name: str, quantization: Mapping[str, Any]) -> Tensor:
    import mlx.core as mx
    import numpy as np

    words, scales, biases = (tensors[f"{name}.{part}"] for part in ("weight", "scales", "biases"))
    form = quantization[name]
    decoded = mx.dequantize(
        mx.array(words.numpy()),
        mx.array(scales.float().numpy()),
        mx.array(biases.float().numpy()),
        group_size=form["group_size"],
        bits=form["bits"],
    )
    return torch.from_numpy(np.array(decoded))


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
