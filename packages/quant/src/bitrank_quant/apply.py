"""Apply a precision plan to a model, module by module.

A plan is plain data, ``{module name: format text}``. One model may mix formats; modules that the plan does
not name are unchanged. Supported besides linear layers: GPT-2's ``Conv1D`` (converted to a linear layer),
embeddings and their subclasses (which keep their forward pass), modules that share a weight (they use the
format and the bytes of its owner), and hooks (they move to the new module).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitrank_quant.backends.choose import (
    check_fits,
    check_looks_up,
    check_takes_codes,
    choose_backend,
    override_for,
)
from bitrank_quant.backends.dequantize import stored_weight
from bitrank_quant.backends.overrides import Override
from bitrank_quant.backends.reference import QuantEmbedding, QuantLinear, QuantWeight
from bitrank_quant.backends.registry import BACKENDS, REFERENCE, backend_of
from bitrank_quant.errors import QuantError
from bitrank_quant.formats.base import Format, Tensors
from bitrank_quant.formats.float import Float
from bitrank_quant.formats.parse import parse_format
from bitrank_quant.matrices import followers, left_out, tied_modules, weight_matrices
from bitrank_quant.replaceable import readers_of_weights

PrecisionPlan = dict[str, str]
Split = Callable[[str, Tensor, Callable[[Tensor], Tensor]], Tensor]
Encode = Callable[[str, Tensor, Format], Tensors]
# For a matrix whose ``weight`` another module reads: the reference backend returns it decoded, others return
# codes.
_DECODED = Override(None, REFERENCE.name, None)
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@dataclass(frozen=True)
class Applied:
    """Format and backend that store one matrix after :func:`apply_precision`."""

    format: str
    backend: str


@dataclass(frozen=True)
class _Storing:
    """The options of :func:`apply_precision` that hold for every matrix."""

    override: Override
    compute_dtype: torch.dtype
    split: Split
    encode: Encode | None

    def backend(self, fmt: Format, device: str, shape: tuple[int, int]) -> str:
        if isinstance(fmt, Float):
            return REFERENCE.name
        given = None if self.encode is None else shape
        return self.override.backend or choose_backend(fmt, device, self.compute_dtype, given).name

    def made(
        self, name: str, weight_OI: Tensor, bias: nn.Parameter | None, fmt: Format, backend: str
    ) -> nn.Module:
        """The layer of ``backend`` that stores ``weight_OI`` in ``fmt``."""
        if self.encode is None or isinstance(fmt, Float):
            return BACKENDS[backend].make(_linear(weight_OI, bias), fmt, self.compute_dtype)
        make = BACKENDS[backend].make_from_codes
        assert make is not None  # check_takes_codes refuses the others
        shape = (weight_OI.shape[0], weight_OI.shape[1])
        return make(self.encode(name, weight_OI, fmt), fmt, shape, bias, self.compute_dtype)

    def shared(self, name: str, weight_OI: Tensor, fmt: Format) -> QuantWeight:
        """The codes of a matrix that several modules share, or of an embedding."""
        if self.encode is None or isinstance(fmt, Float):
            return QuantWeight(weight_OI, fmt, self.compute_dtype)
        shape = (weight_OI.shape[0], weight_OI.shape[1])
        return QuantWeight.of(self.encode(name, weight_OI, fmt), fmt, shape, self.compute_dtype)


def _no_fill(_name: str) -> None: ...


def _no_split(_name: str, weight_OI: Tensor, _stored: Callable[[Tensor], Tensor]) -> Tensor:
    return weight_OI


@dataclass(frozen=True)
class Encoding:
    """Codes of low-bit matrices.

    ``split`` may replace the weight of each quantized linear layer: it gets the module's name, the (out, in)
    weight, and a function that maps a weight to the (out, in) matrix that a layer would multiply by after
    encoding it, and returns the weight to encode. ``encode`` is the quantizer: it maps a module's name, a
    weight and a format to the tensors that the format stores; None: each backend rounds.
    """

    split: Split = _no_split
    encode: Encode | None = None


def apply_precision(
    model: nn.Module,
    plan: PrecisionPlan,
    *,
    quant_backend: str = "auto",
    compute_dtype: torch.dtype = torch.bfloat16,
    device: str | None = None,
    fill: Callable[[str], None] = _no_fill,
    encoding: Encoding | None = None,
) -> dict[str, Applied]:
    """Store every matrix that ``plan`` names in its format, in place; return format and backend per module.

    ``quant_backend`` overrides the plan's low-bit formats (see
    :data:`~bitrank_quant.backends.overrides.OVERRIDES`). Quantized layers take and return ``compute_dtype``.
    ``device`` is the final device of the weights, by default that of the first parameter. ``fill`` is called
    with the name of each module just before it is encoded, and may load weights that are still on the
    ``meta`` device, so that the whole unquantized model is never in memory. ``encoding`` determines the codes
    of low-bit matrices; by default each backend rounds the whole weight.

    Raises :class:`QuantError`, before the model changes, for a module that the model lacks or whose weight is
    quantized already, a format or backend that is unavailable or does not fit a matrix, an embedding whose
    rows end within a byte, a backend that takes no codes from a quantizer, or a tied head whose format
    differs from its embedding's.
    """
    device = device or next(model.parameters()).device.type
    override = override_for(quant_backend, device, compute_dtype)
    formats = {name: _effective(parse_format(text), override) for name, text in plan.items()}
    _check_names(model, formats)
    _check_unquantized(model, formats)
    tied, heads_of, read = tied_modules(model), followers(model), readers_of_weights(model)
    _check_tied(formats, tied)
    encoding = encoding or Encoding()
    storing = _Storing(override, compute_dtype, encoding.split, encoding.encode)
    _check_stored(model, formats, storing, device)
    applied: dict[str, Applied] = {}
    for name, fmt in formats.items():
        if name not in tied:
            fill(name)
            one = replace(storing, override=_DECODED) if name in read else storing
            applied |= _store(model, name, fmt, heads_of.get(name, []), one)
    _flag_for_peft(model, applied)
    return applied


def _effective(fmt: Format, override: Override) -> Format:
    return fmt if override.format is None or isinstance(fmt, Float) else parse_format(override.format)


def _store(
    model: nn.Module, name: str, fmt: Format, heads: list[str], storing: _Storing
) -> dict[str, Applied]:
    module = model.get_submodule(name)
    if isinstance(module, Conv1D):
        module = keep_hooks(module, _linear_from_conv1d(module))
        replace_module(model, name, module)
    assert isinstance(module, (nn.Linear, nn.Embedding))
    if isinstance(fmt, Float) and fmt.dtype == module.weight.dtype == storing.compute_dtype:
        return {part: Applied(str(fmt), REFERENCE.name) for part in (name, *heads)}
    if isinstance(module, nn.Embedding) or heads:
        return _store_shared(model, name, fmt, heads, storing)
    rows, columns = module.weight.shape
    backend = storing.backend(fmt, module.weight.device.type, (rows, columns))

    def stored(weight_OI: Tensor) -> Tensor:
        return stored_weight(storing.made(name, weight_OI, None, fmt, backend))

    weight_OI = module.weight.detach()
    if not isinstance(fmt, Float):
        weight_OI = storing.split(name, weight_OI, stored)
    made = storing.made(name, weight_OI, module.bias, fmt, backend)
    replace_module(model, name, keep_hooks(model.get_submodule(name), made))
    return {name: Applied(str(fmt), backend)}


def _linear(weight_OI: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight_OI, requires_grad=False)
    if bias is not None:
        linear.bias = bias
    return linear


def _store_shared(
    model: nn.Module, name: str, fmt: Format, heads: list[str], storing: _Storing
) -> dict[str, Applied]:
    """Store an embedding and the heads tied to it over one set of codes.

    Always in the reference backend, whatever the override: no other one looks rows up.
    """
    module: Any = model.get_submodule(name)
    quantized = storing.shared(name, module.weight.detach(), fmt)
    swap_weights(model, with_weight(quantized, {part: model.get_submodule(part) for part in (name, *heads)}))
    return {part: Applied(str(fmt), REFERENCE.name) for part in (name, *heads)}


def _linear_from_conv1d(conv: Conv1D) -> nn.Linear:
    """A linear layer with the transposed weight of GPT-2's ``Conv1D``: ``x W + b`` with W (in, out)."""
    linear = nn.Linear(conv.weight.shape[0], conv.weight.shape[1], device="meta")
    linear.weight = nn.Parameter(conv.weight.detach().T.contiguous(), requires_grad=conv.weight.requires_grad)
    linear.bias = nn.Parameter(conv.bias.detach(), requires_grad=conv.bias.requires_grad)
    return linear


def with_weight(weight: QuantWeight, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Equivalents of ``modules``, which share one weight, that use the quantized ``weight`` instead."""
    return {name: _with_weight(weight, module) for name, module in modules.items()}


def _with_weight(weight: QuantWeight, module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return QuantEmbedding.instead_of(module, weight)
    return keep_hooks(module, QuantLinear(weight, module.bias))  # type: ignore[arg-type]


def keep_hooks(before: nn.Module, after: nn.Module) -> nn.Module:
    """Move the hooks of ``before`` to ``after``, its replacement, and return ``after``.

    If ``after`` has no hooks of its own, both share the same dictionaries, so that existing handles still
    work.
    """
    for name in _HOOKS:
        old, own = before.__dict__[name], after.__dict__[name]
        if own:
            own.update(old)
        else:
            after.__dict__[name] = old
    after._is_full_backward_hook = before._is_full_backward_hook
    return after


def swap_weights(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Replace the named modules of ``model`` by ``modules``."""
    for name, module in modules.items():
        replace_module(model, name, module)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule ``name`` of ``model`` by ``module``."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _check_names(model: nn.Module, formats: dict[str, Format]) -> None:
    known = {matrix.name for matrix in weight_matrices(model)}
    for name in formats:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or sorted(known)[:3]
            left = next((one for one in left_out(model) if one.name == f"{name}.weight"), None)
            if left is not None:
                raise QuantError(
                    f"the plan names {name!r}, which stays in 16 bits ({left.reason}); "
                    "leave it out of the plan"
                )
            raise QuantError(
                f"the plan names {name!r}, which is no weight matrix of this model; "
                f"nearest: {', '.join(near)}"
            )


def _check_unquantized(model: nn.Module, names: Iterable[str]) -> None:
    """Raise :class:`QuantError` for codes, of any library: they would be encoded as if they were weights."""
    for name in names:
        module = model.get_submodule(name)
        weight = module._parameters.get("weight")
        if backend_of(module) is not None or weight is None or not weight.is_floating_point():
            raise QuantError(
                f"{name!r} is quantized already ({type(module).__name__}); expected float weights: load the "
                "model again, without quantization"
            )


def _check_tied(formats: dict[str, Format], tied: dict[str, str]) -> None:
    for head, embedding in tied.items():
        if head in formats and formats[head] != formats.get(embedding):
            raise QuantError(
                f"{head!r} shares its weight with {embedding!r}, so both need one format; the plan says "
                f"{formats[head]} and {formats.get(embedding, 'nothing')}. "
                "Give them the same format, or leave the head out."
            )


def _check_stored(model: nn.Module, formats: dict[str, Format], storing: _Storing, device: str) -> None:
    """Check that each matrix can be stored in its format by the backend that gets it."""
    in_reference = {*followers(model), *readers_of_weights(model)}
    for matrix in weight_matrices(model):
        fmt = formats.get(matrix.name)
        if fmt is None or matrix.tied_to is not None:
            continue
        if matrix.role == "embedding":
            check_looks_up(fmt, matrix.shape, matrix.name)
        elif matrix.name not in in_reference:
            backend = storing.backend(fmt, device, matrix.shape)
            check_fits(backend, fmt, matrix.shape, matrix.name)
            if storing.encode is not None and not isinstance(fmt, Float):
                check_takes_codes(backend, fmt, matrix.shape, matrix.name)


def _flag_for_peft(model: nn.Module, applied: dict[str, Applied]) -> None:
    for done in applied.values():
        flag = BACKENDS[done.backend].peft_flag(parse_format(done.format))
        if flag is not None:
            setattr(model, flag, True)
