"""How large the tensors of a pass get, told before the run, and how many tokens keep them all under a bound.

Metal refuses a tensor of more than 2³² bytes and ends the process, so on MPS the bound must hold before anything is computed.
Three kinds grow with the batch: attention scores (fp32, quadratic in the length), activations (the widest layer applied at every
position; norms compute in fp32) and the logits of a language-model head, whole or a block of positions at a time. A weight
does not shrink with the batch; one over the bound is an error. Optimizer state is smaller than the weights it belongs to.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from torch import nn

from bitrank_trainer.errors import TrainError
from bitrank_trainer.fused.lm_head import block_positions, split_head

MPS_BYTES = 2**32  # MPSNDArray: "total bytes of NDArray > 2**32"
_FP32 = 4


@dataclass(frozen=True)
class Shapes:
    """What decides the size of a pass's tensors, as plain numbers.

    ``hidden`` is the width between layers and ``widest`` that of the widest layer between them; ``head`` the outputs at each position (a
    vocabulary, or 0 when a classifier sees one position only); ``blockwise`` whether head and loss go by blocks; ``wide_bytes`` what one
    number of the widest layer takes; ``weight`` the bytes of the largest matrix in the compute dtype.
    """

    hidden: int
    widest: int
    heads: int
    head: int
    blockwise: bool
    wide_bytes: int
    weight: int


def tensor_bytes(shapes: Shapes, rows: int, length: int) -> dict[str, int]:
    """The largest tensor of each kind, in bytes, for a pass of ``rows`` sequences of ``length`` tokens."""
    positions = rows * length
    at_once = min(positions, block_positions(shapes.head)) if shapes.blockwise else positions
    return {
        "attention scores": rows * shapes.heads * length**2 * _FP32,
        "activations": positions * max(shapes.widest * shapes.wide_bytes, shapes.hidden * _FP32),
        "logits": at_once * shapes.head * _FP32,
        "largest weight": shapes.weight,
    }


def safe_tokens(shapes: Shapes, rows: int, length: int, limit: int = MPS_BYTES) -> int | None:
    """Padded tokens of a pass so that no tensor is over ``limit`` bytes at any length up to ``length``; None: ``rows`` fit whole.

    As many whole sequences of the greatest length as fit; shorter ones then fit too, since nothing grows faster than their number
    falls. Raises :class:`TrainError` when one sequence, or a weight, is over the bound.
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
            f"one sequence of {length} tokens makes a tensor of {size:,} bytes ({kind}), over the limit of {limit:,}: give {way_out}"
        )
    return None if fitting == rows else fitting * length


def shapes_of(model: nn.Module, fused: bool, itemsize: int, exact_int8: bool = False) -> Shapes:
    """The :class:`Shapes` of a transformers ``model`` (adapted or not) that computes in ``itemsize`` bytes a number.

    ``exact_int8``: some layer multiplies int8 activations (LLM.int8()), whose sums take 4 bytes. Raises :class:`TrainError` when the
    model's configuration does not tell its heads.
    """
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    config = inner.config
    heads, hidden = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    if not heads or not hidden:
        raise TrainError(
            f"cannot tell tensor sizes of {type(inner).__name__}: its configuration lacks num_attention_heads or hidden_size"
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
    """(out, in) of a linear layer of any make; None for other modules."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.out_features), int(module.in_features)
    return (int(module.nf), int(module.nx)) if type(module).__name__ == "Conv1D" else None
