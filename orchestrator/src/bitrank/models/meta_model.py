"""Build a model's structure from its ``config.json``: names, shapes and dtypes on the ``meta`` device.

No weight is in memory. Forecasts apply a plan to this structure (stand-ins for quantized layers, adapters,
fused products) and run the training code over shapes.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from bitrank_quant import (
    Float,
    Format,
    QuantEmbedding,
    QuantLinear,
    QuantWeight,
    followers,
    left_out,
    parse_format,
    store_in_16_bits,
    tied_modules,
)
from bitrank_trainer import implementation
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.initialization import no_init_weights, no_tie_weights
from transformers.models.auto.auto_factory import _get_model_class
from transformers.pytorch_utils import Conv1D

from bitrank.errors import UserError
from bitrank.models.architectures import auto_class
from bitrank.models.checkpoint import read_checkpoint
from bitrank.models.completeness import check_complete, heads_of
from bitrank.models.config import read_config
from bitrank.spec.task_kinds import task_kind


def meta_model(
    place: str,
    kind: str,
    classes: int,
    dtype: torch.dtype,
    attention: str = "eager",
    dropout: float | None = None,
    depth: int | None = None,
) -> Any:
    """Build the model that the ``config.json`` at ``place`` describes, on the ``meta`` device.

    ``place`` is a folder, the file itself, or a hub id. ``depth`` overrides the number of blocks. Buffers are
    real, because they are small and their values are in no file. Raises :class:`UserError` if there is no
    such config, or if it describes an encoder and ``kind`` is language modelling.
    """
    config = read_config(place, kind, classes, dropout)
    if depth is not None:
        config.num_hidden_layers = depth
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:depth]
    auto = auto_class(kind)
    attention = implementation(class_of(auto, config), attention)
    try:
        with no_init_weights(), no_tie_weights(), init_empty_weights(include_buffers=False), _Unfilled():
            model: Any = auto.from_config(config, dtype=dtype, attn_implementation=attention)
    except (ArithmeticError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{place}: transformers cannot build the model that config.json describes: {error}; correct it"
        ) from error
    if _has_weights(place):
        read_checkpoint(model, Path(place), dtype).tie(model)
    else:
        model.tie_weights()
    return model.eval()


def _has_weights(place: str) -> bool:
    return Path(place).is_dir() and any(Path(place).glob("*.safetensors*"))


class _Unfilled(TorchFunctionMode):
    """Create empty tensors on ``meta``.

    Layers create their weights by ``torch.empty``, which would allocate gigabytes for a moment.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func is torch.empty and options.get("device") is None:
            options["device"] = "meta"
        return func(*args, **options)


def find_new_modules(model: Any, place: str, kind: str) -> list[str]:
    """Return the names of the modules that will be trained whole.

    These are a classifier's modules outside its body and, if ``place`` has files, modules of the body that
    the files lack. Raises :class:`~bitrank.errors.UserError` if the files lack a part that must not be drawn
    at random.
    """
    missing = set[str]()
    if _has_weights(place):
        checkpoint = read_checkpoint(model, Path(place), model.dtype)
        check_complete(checkpoint, model, place, kind)
        missing = {name.rpartition(".")[0] for name in (*checkpoint.missing, *checkpoint.mismatched)}
    if task_kind(kind).new_head:
        missing.update(heads_of(model))
    return [name for name, _ in model.named_modules() if name in missing]


class StandIn(nn.Linear):
    """A linear layer with the memory behaviour of a quantized one.

    Its weight is decoded at each access and not retained.
    """

    def __init__(self, out: int, into: int, bias: Tensor | None, dtype: torch.dtype, fmt: Format) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features, self.dtype, self.fmt = out, into, dtype, fmt
        self.register_parameter(
            "bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        )

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return torch.empty(self.out_features, self.in_features, dtype=self.dtype, device="meta")

    def as_quantized(self) -> QuantLinear:
        """The layer with its codes and scales, on the ``meta`` device, for training its scales."""
        return QuantLinear(QuantWeight(self.weight, self.fmt, self.dtype), self.bias)

    def forward(self, input: Tensor) -> Tensor:
        rows_NI = input.reshape(-1, self.in_features)
        made: Tensor = _Product.apply(rows_NI, self)
        return made.view(*input.shape[:-1], self.out_features)


class NoCodes(nn.Module):
    """A replacement for an embedding's codes that only creates the rows that are looked up.

    The rest of the embedding stays as it is with codes.
    """

    def __init__(self, rows: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape, self.compute_dtype = (rows, width), dtype

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"codes": torch.empty(0, dtype=self.compute_dtype, device="meta")}

    def decode(self) -> Tensor:
        return torch.empty(*self.shape, dtype=self.compute_dtype, device="meta")

    def decode_rows(self, ids: Tensor) -> Tensor:
        return torch.empty(*ids.shape, self.shape[1], dtype=self.compute_dtype, device="meta")


class _Product(torch.autograd.Function):
    """``x Wᵀ + b`` with W decoded in both passes."""

    @staticmethod
    def forward(ctx: Any, rows_NI: Tensor, layer: StandIn) -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(rows_NI, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        return (grads[0] @ ctx.layer.weight if ctx.needs_input_grad[0] else None), None


def stand_in(
    model: nn.Module, precision: dict[str, str], dtype: torch.dtype, trained_modules: Collection[str] = ()
) -> None:
    """Replace the modules that ``precision`` stores in another format than ``dtype`` by stand-ins, in place.

    A ``Conv1D`` in ``precision`` becomes a linear layer. Tensors that no plan can name are stored in 16 bits,
    except those of ``trained_modules``.
    """
    tied, sharing = tied_modules(model), followers(model)
    for name, text in precision.items():
        if name in tied:
            continue
        fmt = parse_format(text)
        for part in (name, *sharing.get(name, [])):
            _replace(model, part, _instead(model.get_submodule(part), fmt, dtype))
    store_in_16_bits(model, left_out(model, trained_modules))


def _instead(module: Any, fmt: Format, dtype: torch.dtype) -> nn.Module:
    plain = isinstance(fmt, Float) and fmt.dtype == dtype
    if isinstance(module, nn.Embedding):
        codes: Any = NoCodes(module.num_embeddings, module.embedding_dim, dtype)
        return module if plain else QuantEmbedding.instead_of(module, codes)
    into, out = tuple(module.weight.shape) if isinstance(module, Conv1D) else tuple(module.weight.shape)[::-1]
    if not plain:
        return StandIn(out, into, module.bias, dtype, fmt)
    if not isinstance(module, Conv1D):
        return module  # type: ignore[no-any-return]
    made = nn.Linear(into, out, device="meta", dtype=dtype)
    made.bias = module.bias
    return made


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def class_of(auto: Any, config: Any) -> type[nn.Module] | None:
    """Return the class that ``auto`` builds from ``config``; None if transformers itself has none."""
    try:
        found: type[nn.Module] = _get_model_class(config, auto._model_mapping)
    except KeyError:
        return None
    return found
