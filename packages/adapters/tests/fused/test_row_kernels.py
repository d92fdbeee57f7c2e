"""Norms and feed-forward parts with row kernels equal those without; kernels run outside autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bitrank_adapters import AdapterScale, attach_lora, fuse, uniform_ranks
from bitrank_adapters.fused.norms import _RmsNorm, norms_in_fp32
from torch import Tensor
from torch.nn import functional as F


class PlainRows:
    """Row kernels in plain torch that record their calls."""

    def __init__(self, serving: bool = True) -> None:
        self.serving, self.calls = serving, list[str]()

    def serves(self, *tensors: Tensor) -> bool:
        return self.serving

    def rms_norm(self, x: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        self.calls.append("rms_norm")
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
        return (weight_D * (x.float() * scale)).to(x.dtype), scale

    def rms_norm_gradient(self, grad: Tensor, x: Tensor, weight_D: Tensor, scale: Tensor) -> Tensor:
        self.calls.append("rms_norm_gradient")
        unit, part = x.float() * scale, grad.float() * weight_D
        return (scale * (part - unit * (part * unit).mean(-1, keepdim=True))).to(x.dtype)

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        self.calls.append("swiglu")
        assert not torch.is_grad_enabled()
        return F.silu(gate) * up

    def swiglu_gradients_(self, grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.append("swiglu_gradients_")
        share = torch.sigmoid(gate)
        return grad * up * share * (1 + gate * (1 - share)), grad * gate * share


def model_of(make: Callable[..., Any], blocks: dict[str, Any], dtype: torch.dtype) -> Any:
    model = make("llama", dtype)
    norms_in_fp32(model)
    adapted = attach_lora(model, uniform_ranks(blocks["llama"], 4), scale=AdapterScale(1.7, "constant"))
    with torch.no_grad():
        for number, parameter in enumerate(p for p in adapted.parameters() if p.requires_grad):
            parameter.copy_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1
            )
    return adapted.train()


def trained(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(input_ids=ids).logits
    logits.float().square().mean().backward()
    return logits.detach().float(), torch.cat(
        [p.grad.flatten() for p in model.parameters() if p.requires_grad]
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_llama_with_row_kernels_equals_plain(
    make: Callable[..., Any], blocks: dict[str, Any], ids: Tensor, dtype: torch.dtype, tolerance: float
) -> None:
    plain, model, rows = model_of(make, blocks, dtype), model_of(make, blocks, dtype), PlainRows()
    fuse(plain)
    fuse(model, rows=rows)
    for found, expected in zip(trained(model, ids), trained(plain, ids), strict=True):
        assert (found - expected).norm() < tolerance * expected.norm()
    # Two layers with two norms each, and the final norm; no gradient for the first layer's input. One
    # feed-forward part per layer.
    assert {name: rows.calls.count(name) for name in rows.calls} == {
        "rms_norm": 5, "rms_norm_gradient": 4, "swiglu": 4, "swiglu_gradients_": 2,
    }  # fmt: skip


def test_unserved_tensors_use_torch_operations(
    make: Callable[..., Any], blocks: dict[str, Any], ids: Tensor
) -> None:
    plain, model, rows = (
        model_of(make, blocks, torch.float32),
        model_of(make, blocks, torch.float32),
        PlainRows(serving=False),
    )
    fuse(plain)
    fuse(model, rows=rows)
    for found, expected in zip(trained(model, ids), trained(plain, ids), strict=True):
        assert torch.equal(found, expected)
    assert not rows.calls


def test_gradients_pass_through_a_part_without_adapter(
    make: Callable[..., Any], blocks: dict[str, Any], ids: Tensor
) -> None:
    """As for a matrix of rank 0: gradients of lower layers pass through its activation."""
    results = []
    for rows in (None, PlainRows()):
        model = model_of(make, blocks, torch.float32)
        fuse(model, rows=rows)
        for layer in model.get_base_model().model.layers:
            layer.mlp.down_proj.enable_adapters(False)
        results.append(trained_below(model, ids))
    assert (results[1] - results[0]).norm() < 1e-5 * results[0].norm()


def test_second_derivative_raises() -> None:
    """Autograd records no graph of compiled kernels."""
    x = torch.randn(3, 8, requires_grad=True)
    normed = _RmsNorm.apply(x, torch.ones(8), 1e-6, PlainRows())
    (first,) = torch.autograd.grad(normed.pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def trained_below(model: Any, ids: Tensor) -> Tensor:
    model(input_ids=ids).logits.square().mean().backward()
    return torch.cat(
        [p.grad.flatten() for n, p in model.named_parameters() if p.grad is not None and "down_proj" not in n]
    )
