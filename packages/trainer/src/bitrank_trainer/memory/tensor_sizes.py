"""Sizes of the largest tensors of a pass, computed before the run, and the token limit that bounds them.

Metal rejects a tensor of more than 2³² bytes and aborts the process, so on MPS the bound must hold before any
computation. Three kinds grow with the batch: attention scores (fp32, quadratic in the length), activations
(the widest layer applied at every position; norms compute in fp32) and the logits of a language-model head,
whole or in blocks of positions. A weight does not shrink with the batch; a weight over the bound is an error.
Optimizer state is smaller than the weights it belongs to.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from bitrank_trainer.errors import TrainError
from bitrank_trainer.fused.lm_head import block_positions, split_head

MPS_BYTES = 2**32  # MPSNDArray: "total bytes of NDArray > 2**32"
_FP32 = 4


@dataclass(frozen=True)
class Shapes:
    """Sizes of a model that determine the tensor sizes of a pass.

    ``hidden`` is the width between layers, ``widest`` the width of the widest layer between them. ``head`` is
    the number of outputs per position (the vocabulary size, or 0 for a classifier that reads one position).
    ``blockwise``: head and loss are computed in blocks. ``wide_bytes`` is the size of one element
    of the widest layer, ``weight`` the bytes of the largest matrix in the compute dtype.
    """

    hidden: int
    widest: int
    heads: int
    head: int
    blockwise: bool
    wide_bytes: int
    weight: int


def tensor_bytes(shapes: Shapes, rows: int, length: int) -> dict[str, int]:
    """Bytes of the largest tensor of each kind, for a pass of ``rows`` sequences of ``length`` tokens."""
    positions = rows * length
    at_once = min(positions, block_positions(shapes.head)) if shapes.blockwise else positions
    return {
        "attention scores": rows * shapes.heads * length**2 * _FP32,
        "activations": positions * max(shapes.widest * shapes.wide_bytes, shapes.hidden * _FP32),
        "logits": at_once * shapes.head * _FP32,
        "largest weight": shapes.weight,
    }


def safe_tokens(shapes: Shapes, rows: int, length: int, limit: int = MPS_BYTES) -> int | None:
    """Padded tokens per pass for which no tensor exceeds ``limit`` bytes; None if all ``rows`` fit.

    The bound holds at any length up to ``length``: the number of whole sequences of the greatest length
    decides, and no tensor grows faster with the length than the number of rows falls. Raises
    :class:`TrainError` if one sequence, or a weight, exceeds the bound.
    """

    def largest(count: int) -> int:
        return max(tensor_bytes(shapes, count, length).values())

    fitting = bisect_right(range(1, rows + 1), limit, key=largest)
    if fitting == 0:
        kind, size = max(tensor_bytes(shapes, 1, length).items(), key=lambda item: item[1])
        way_out = (
            "a smaller model, or device=cpu"
            if kind == "largest weight"
            else "shorter sequences (max_length), or device=cpu"
        )
        raise TrainError(
            f"one sequence of {length} tokens makes a tensor of {size:,} bytes ({kind}), over the limit of "
            f"{limit:,}: give {way_out}"
        )
    return None if fitting == rows else fitting * length


def shapes_of(model: nn.Module, fused: bool, itemsize: int, exact_int8: bool = False) -> Shapes:
    """:class:`Shapes` of a transformers ``model`` (adapted or not) that computes with ``itemsize`` bytes.

    ``exact_int8``: a layer multiplies int8 activations (LLM.int8()), whose sums take 4 bytes each. Raises
    :class:`TrainError` if the model's configuration lacks the number of heads or the hidden size.
    """
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    config = inner.config
    heads, hidden = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    if not heads or not hidden:
        raise TrainError(
            f"cannot tell tensor sizes of {type(inner).__name__}: its configuration lacks "
            "num_attention_heads or hidden_size"
        )
    output = inner.get_output_embeddings()
    layers = [
        shape
        for module in model.modules()
        if module is not output and (shape := _features(module)) is not None
    ]
    tables = [tuple(module.weight.shape) for module in model.modules() if type(module) is nn.Embedding]
    return Shapes(
        hidden=hidden,
        widest=max(max(shape) for shape in layers),
        heads=heads,
        head=0 if output is None else int(config.vocab_size),
        blockwise=fused and split_head(model) is not None,
        wide_bytes=_FP32 if exact_int8 else itemsize,
        weight=max(rows * columns for rows, columns in [*layers, *tables]) * itemsize,
    )


def _features(module: Any) -> tuple[int, int] | None:
    """(out, in) of a linear layer of any class; None for other modules."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.out_features), int(module.in_features)
    return (int(module.nf), int(module.nx)) if isinstance(module, Conv1D) else None
