"""Compiled passes over rows against the same in float64, and who does them."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitrank_quant import kernels
from bitrank_quant.kernels import build, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

DTYPES = {torch.float32: 3e-7, torch.bfloat16: 2.0**-8}  # half a unit in the last place of bf16 is 2⁻⁹
KINDS = st.sampled_from(list(DTYPES))
MASKS = st.sampled_from(["none", "keys", "rows", "one"])
SEEDS = st.integers(0, 2**31)


@pytest.fixture(autouse=True)
def _compiler(kernel_cache: Path) -> None:
    if not rows.serves(torch.zeros(1)):
        pytest.skip("no compiled passes over rows here")


def draw(seed: int, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=generator) * 2).to(dtype) for shape in shapes]


def near(found: Tensor, exact: Tensor, dtype: torch.dtype, times: float = 1.0) -> None:
    assert found.dtype == dtype and found.shape == exact.shape
    bound = times * DTYPES[dtype]
    torch.testing.assert_close(found.double(), exact.double(), rtol=bound, atol=bound * float(exact.abs().max()))


def gradients(exact: Tensor, inputs: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(exact, inputs, grad.double())


@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 70),
    st.sampled_from(["none", "keys", "rows", "one"]),
    KINDS,
    SEEDS,
)
def test_softmax(batch: int, heads: int, length: int, keys: int, masked: str, dtype: torch.dtype, seed: int) -> None:
    scores, grad = draw(seed, dtype, (batch * heads, length, keys), (batch * heads, length, keys))
    mask = None
    if masked != "none":
        shape = (1 if masked == "one" else batch, 1, 1 if masked == "keys" else length, keys)
        hidden = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4
        mask = torch.zeros(shape, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)
    leaf = scores.double().requires_grad_()
    shifted = leaf.view(batch, heads, length, keys) * 0.3
    exact = torch.softmax(shifted if mask is None else (shifted + mask.double()), -1).view(scores.shape)
    shares = rows.softmax_(scores.clone(), mask, 0.3, length, heads)
    near(shares, exact.detach(), dtype)
    # The gradient from the shares that it is given, as torch takes it.
    expected = torch._softmax_backward_data(grad.double(), shares.double(), -1, torch.float64) * 0.3
    near(rows.softmax_gradient_(grad.clone(), shares, 0.3), expected, dtype, times=4)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 80), KINDS, SEEDS)
def test_rms_norm(batch: int, length: int, size: int, dtype: torch.dtype, seed: int) -> None:
    x, grad = draw(seed, dtype, (batch, length, size), (batch, length, size))
    weight = draw(seed + 1, torch.float32, (size,))[0]
    leaf = x.double().requires_grad_()
    exact = weight.double() * leaf * torch.rsqrt(leaf.square().mean(-1, keepdim=True) + 1e-5)
    found, scale = rows.rms_norm(x, weight, 1e-5)
    near(found, exact.detach(), dtype)
    assert scale.dtype == torch.float32 and scale.shape == (batch, length, 1)
    (expected,) = gradients(exact, [leaf], grad)
    # Where the parts cancel, the error is that of the larger part.
    part = (grad.double() * weight.double() * scale.double()).abs().max()
    assert float((rows.rms_norm_gradient(grad, x, weight, scale).double() - expected).abs().max()) <= 4 * DTYPES[dtype] * float(part)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 7), st.integers(1, 700), KINDS, SEEDS)
def test_swiglu(count: int, size: int, dtype: torch.dtype, seed: int) -> None:
    gate, up, grad = draw(seed, dtype, *[(count, size)] * 3)
    leaves = [gate.double().requires_grad_(), up.double().requires_grad_()]
    exact = F.silu(leaves[0]) * leaves[1]
    near(rows.swiglu(gate, up), exact.detach(), dtype)
    for found, expected in zip(rows.swiglu_gradients_(grad.clone(), gate, up), gradients(exact, leaves, grad), strict=True):
        near(found, expected, dtype, times=2)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 40), st.booleans(), KINDS, SEEDS)
def test_rotary_positions(batch: int, heads: int, length: int, half: int, shared: bool, dtype: torch.dtype, seed: int) -> None:
    """x as a product leaves it, by position first; angles of all sequences or of each, of which the halves may differ."""
    x, grad = draw(seed, dtype, (batch, length, heads, 2 * half), (batch, heads, length, 2 * half))
    angles = torch.randn(1 if shared else batch, length, 2 * half, generator=torch.Generator().manual_seed(seed))
    cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
    leaf = x.transpose(1, 2).double().requires_grad_()
    turned = torch.cat([-leaf[..., half:], leaf[..., :half]], -1)
    exact = leaf * cosine.double()[:, None] + turned * sine.double()[:, None]
    found = rows.rotate(x.transpose(1, 2), cosine, sine)
    near(found, exact.detach(), dtype, times=2)
    assert found.is_contiguous()
    back = rows.rotate(grad, cosine, sine, back=True)
    near(back, gradients(exact, [leaf], grad)[0], dtype, times=2)
    assert back.transpose(1, 2).is_contiguous()


def every_pass(dtype: torch.dtype) -> list[Tensor]:
    """One of each, on enough numbers for two threads, with widths that fill no vector."""
    x, y, z = draw(0, dtype, *[(37, 9, 133)] * 3)
    weight = draw(1, torch.float32, (133,))[0]
    q, cosine, sine = draw(2, dtype, (3, 5, 61, 66), (1, 61, 66), (1, 61, 66))
    normed, scale = rows.rms_norm(x, weight, 1e-6)
    shares = rows.softmax_(x.clone(), None, 0.5, 9, 1)
    made = [normed, scale, rows.rms_norm_gradient(y, x, weight, scale), shares, rows.softmax_gradient_(y.clone(), shares, 0.5)]
    made += [rows.swiglu(x, y), *rows.swiglu_gradients_(z.clone(), x, y)]
    return [*made, rows.rotate(q, cosine, sine), rows.rotate(q, cosine, sine, back=True)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_threads_give_what_one_gives(dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = every_pass(dtype)
        torch.set_num_threads(2)
        two = every_pass(dtype)
    finally:
        torch.set_num_threads(before)
    assert len(one) == 10 and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86-64")
@pytest.mark.parametrize("target", ["x86-64", "x86-64-v2", "x86-64-v3"])
def test_older_cpus_get_these_numbers_to_rounding(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With registers of four and eight numbers, and ends of rows without masks."""
    new = {dtype: every_pass(dtype) for dtype in DTYPES}
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "_TARGETS", ((f"-march={target}",),))
    older = rows.bound(build.load(build.ROWS).library)
    monkeypatch.setattr(rows, "_built", lambda: older)
    for dtype, expected in new.items():
        for found, one in zip(every_pass(dtype), expected, strict=True):
            near(found, one, one.dtype, times=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_a_number_stays_in_sight(bad: float, dtype: torch.dtype) -> None:
    """A run that diverges is told by it."""
    x = torch.ones(2, 33, dtype=dtype)
    x[0, 17] = bad
    passes: list[Callable[[Tensor], Tensor]] = [
        lambda x: rows.softmax_(x.clone(), None, 1.0, 1, 1),
        lambda x: rows.rms_norm(x, torch.ones(33), 1e-6)[0],
        lambda x: rows.swiglu(x, torch.ones_like(x)),
        lambda x: rows.swiglu(torch.ones_like(x), x),
    ]
    plain: list[Callable[[Tensor], Tensor]] = [
        lambda x: torch.softmax(x, -1),
        lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6),
        lambda x: F.silu(x),
        lambda x: F.silu(torch.ones_like(x)) * x,
    ]
    for compiled, torchs in zip(passes, plain, strict=True):
        assert torch.equal(compiled(x).isfinite(), torchs(x).isfinite())


def test_a_row_with_every_key_hidden_is_torchs() -> None:
    scores, mask = torch.randn(2, 3, 5), torch.full((2, 1, 3, 5), torch.finfo(torch.float32).min)
    expected = torch.softmax(scores + mask[:, 0], -1)
    torch.testing.assert_close(rows.softmax_(scores, mask, 1.0, 3, 1), expected)


def test_on_paper_shapes_alone_are_made() -> None:
    """Where memory is foretold: same shapes, types and layouts, no number."""
    real = every_pass(torch.bfloat16)
    with pytest.MonkeyPatch.context() as patch:
        drawn = draw
        patch.setitem(globals(), "draw", lambda *of: [tensor.to("meta") for tensor in drawn(*of)])
        paper = every_pass(torch.bfloat16)
    assert all(tensor.is_meta for tensor in paper)
    assert [(t.shape, t.dtype, t.stride()) for t in paper] == [(t.shape, t.dtype, t.stride()) for t in real]


class _Own(Tensor):
    """A kind of tensor that may have no memory of its own."""


def test_what_they_cannot_read_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(3)
    assert rows.serves(x) and rows.serves(x.bfloat16()) and rows.serves(torch.nn.Parameter(x), x)
    served: list[Any] = [x.half(), x.double(), x.as_subclass(_Own)]
    assert not any(rows.serves(tensor) for tensor in served) and not rows.serves(x, x.bfloat16())
    monkeypatch.setattr(kernels, "switched_off", lambda: True)
    assert not rows.serves(x)


def test_without_a_library_nothing_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.kernels_status().endswith("passes over rows as well")
    monkeypatch.setattr(rows, "_built", lambda: "no room left")
    assert not rows.serves(torch.zeros(3))
    assert kernels.kernels_status().endswith("passes over rows are plain torch's: no room left")
