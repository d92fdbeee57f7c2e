"""Apply a precision plan to a model, module by module.

A plan is plain data, ``{module name: format text}``. One model may mix formats; modules the plan does not
name stay as they are. Handled on the way: GPT-2's ``Conv1D`` (becomes a linear layer), embeddings and their
subclasses (whose own forward pass stays), modules that share a weight (they follow its owner and share its
bytes), and hooks (they move to the module that takes the place).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitrank_quant.backends.choose import check_fits, choose_backend, override_for
from bitrank_quant.backends.dequantize import stored_weight
from bitrank_quant.backends.overrides import Override
from bitrank_quant.backends.reference import QuantEmbedding, QuantLinear, QuantWeight
from bitrank_quant.backends.registry import BACKENDS, REFERENCE
from bitrank_quant.errors import QuantError
from bitrank_quant.formats.base import Format
from bitrank_quant.formats.float import Float
from bitrank_quant.formats.parse import parse_format
from bitrank_quant.matrices import followers, left_out, tied_modules, weight_matrices
from bitrank_quant.understood import readers_of_weights

PrecisionPlan = dict[str, str]
Split = Callable[[str, Tensor, Callable[[Tensor], Tensor]], Tensor]
# For a matrix whose weight is read by another module: plain torch gives it decoded, libraries give their
# codes.
_DECODED = Override(None, REFERENCE.name, None)
_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
          "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks")  # fmt: skip


@dataclass(frozen=True)
class Applied:
    """What really holds one matrix after :func:`apply_precision`."""

    format: str
    backend: str


def _leave(_name: str) -> None: ...


def _whole(_name: str, weight_OI: Tensor, _stored: Callable[[Tensor], Tensor]) -> Tensor:
    return weight_OI


def apply_precision(
    model: nn.Module,
    plan: PrecisionPlan,
    *,
    quant_backend: str = "auto",
    compute_dtype: torch.dtype = torch.bfloat16,
    device: str | None = None,
    fill: Callable[[str], None] = _leave,
    split: Split = _whole,
) -> dict[str, Applied]:
    """Store every matrix that ``plan`` names in its format, in place, and say what was done.

    ``quant_backend`` overrides the plan's low-bit formats (see
    :data:`~bitrank_quant.backends.overrides.OVERRIDES`). Inputs and outputs of quantized layers are in
    ``compute_dtype``. ``fill`` gives a module that has no weights yet (on the ``meta`` device) its own, just
    before it is stored, so that the model is never in memory unquantized as a whole; ``device`` says where
    they will lie. ``split`` may put another weight in place of each quantized linear one: it gets the
    module's name, its (out, in) weight, and a function from a weight to the (out, in) matrix that a layer
    holding it multiplies by; it gives the weight to store. Raises :class:`QuantError` for a module the model
    lacks, a format or backend that cannot be served or does not fit a matrix, or a tied head that the plan
    wants in another format than its embedding; the model is untouched then.
    """
    device = device or next(model.parameters()).device.type
    override = override_for(quant_backend, device, compute_dtype)
    formats = {name: _effective(parse_format(text), override) for name, text in plan.items()}
    _check_names(model, formats)
    tied, heads_of, read = tied_modules(model), followers(model), readers_of_weights(model)
    _check_tied(formats, tied)
    for matrix in weight_matrices(model):
        alone = matrix.tied_to is None and matrix.role != "embedding" and matrix.name not in heads_of
        if matrix.name in formats and alone and matrix.name not in read:
            fmt = formats[matrix.name]
            check_fits(_backend(fmt, override, device, compute_dtype), fmt, matrix.shape, matrix.name)
    applied: dict[str, Applied] = {}
    for name, fmt in formats.items():
        if name not in tied:
            fill(name)
            only = _DECODED if name in read else override
            applied |= _store(model, name, fmt, heads_of.get(name, []), only, compute_dtype, split)
    _flag_for_peft(model, applied)
    return applied


def _effective(fmt: Format, override: Override) -> Format:
    return fmt if override.format is None or isinstance(fmt, Float) else parse_format(override.format)


def _store(
    model: nn.Module,
    name: str,
    fmt: Format,
    heads: list[str],
    override: Override,
    compute_dtype: torch.dtype,
    split: Split,
) -> dict[str, Applied]:
    module = model.get_submodule(name)
    if isinstance(module, Conv1D):
        module = keep_hooks(module, _linear_from_conv1d(module))
        replace_module(model, name, module)
    assert isinstance(module, (nn.Linear, nn.Embedding))
    if isinstance(fmt, Float) and fmt.dtype == module.weight.dtype == compute_dtype:
        return {part: Applied(str(fmt), REFERENCE.name) for part in (name, *heads)}
    if isinstance(module, nn.Embedding) or heads:
        return _store_shared(model, name, module, fmt, heads, compute_dtype)
    backend = _backend(fmt, override, module.weight.device.type, compute_dtype)
    make = BACKENDS[backend].make

    def stored(weight_OI: Tensor) -> Tensor:
        return stored_weight(make(_linear(weight_OI, None), fmt, compute_dtype))

    if not isinstance(fmt, Float):
        module = _linear(split(name, module.weight.detach(), stored), module.bias)
    made = make(module, fmt, compute_dtype)  # type: ignore[arg-type]
    replace_module(model, name, keep_hooks(model.get_submodule(name), made))
    return {name: Applied(str(fmt), backend)}


def _linear(weight_OI: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight_OI, requires_grad=False)
    if bias is not None:
        linear.bias = bias
    return linear


def _store_shared(
    model: nn.Module, name: str, module: nn.Module, fmt: Format, heads: list[str], compute_dtype: torch.dtype
) -> dict[str, Applied]:
    """An embedding and the heads tied to it, over one set of codes. Only plain torch looks rows up, whatever
    the override.
    """
    quantized = QuantWeight(module.weight, fmt, compute_dtype)  # type: ignore[arg-type]
    swap_weights(model, with_weight(quantized, {part: model.get_submodule(part) for part in (name, *heads)}))
    return {part: Applied(str(fmt), REFERENCE.name) for part in (name, *heads)}


def _backend(fmt: Format, override: Override, device: str, compute_dtype: torch.dtype) -> str:
    if isinstance(fmt, Float):
        return REFERENCE.name
    return override.backend or choose_backend(fmt, device, compute_dtype).name


def _linear_from_conv1d(conv: Conv1D) -> nn.Linear:
    """GPT-2's ``Conv1D`` computes ``x W + b`` with W (in, out): the same layer with W transposed."""
    linear = nn.Linear(conv.weight.shape[0], conv.weight.shape[1], device="meta")
    linear.weight = nn.Parameter(conv.weight.detach().T.contiguous(), requires_grad=conv.weight.requires_grad)
    linear.bias = nn.Parameter(conv.bias.detach(), requires_grad=conv.bias.requires_grad)
    return linear


def with_weight(weight: QuantWeight, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Modules that compute as ``modules`` do (a matrix's own and those that share its weight), over another
    weight."""
    return {name: _over(weight, module) for name, module in modules.items()}


def _over(weight: QuantWeight, module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return QuantEmbedding.instead_of(module, weight)
    return keep_hooks(module, QuantLinear(weight, module.bias))  # type: ignore[arg-type]


def keep_hooks(before: nn.Module, after: nn.Module) -> nn.Module:
    """``after`` with the hooks of ``before``, in whose place it is put. Where it has none of its own the two
    share them, so that a handle that removes a hook still does."""
    for name in _HOOKS:
        held, own = before.__dict__[name], after.__dict__[name]
        if own:
            own.update(held)
        else:
            after.__dict__[name] = held
    after._is_full_backward_hook = before._is_full_backward_hook
    return after


def swap_weights(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Put ``modules`` in their places in ``model``."""
    for name, module in modules.items():
        replace_module(model, name, module)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` where ``name`` is in ``model``."""
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
                    f"the plan names {name!r}, which stays in 16 bits ({left.reason}); leave it out of the plan"
                )
            raise QuantError(
                f"the plan names {name!r}, which is no weight matrix of this model; nearest: {', '.join(near)}"
            )


def _check_tied(formats: dict[str, Format], tied: dict[str, str]) -> None:
    for head, embedding in tied.items():
        if head in formats and formats[head] != formats.get(embedding):
            raise QuantError(
                f"{head!r} shares its weight with {embedding!r}, so both need one format; the plan says "
                f"{formats[head]} and {formats.get(embedding, 'nothing')}. Give them the same format, or leave the head out."
            )


def _flag_for_peft(model: nn.Module, applied: dict[str, Applied]) -> None:
    for done in applied.values():
        flag = BACKENDS[done.backend].peft_flag(parse_format(done.format))
        if flag is not None:
            setattr(model, flag, True)
