"""Compiled row passes against float64 references, and when they are used."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitrank_quant import kernels
from bitrank_quant.kernels import build, rows, status
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

DTYPES = {torch.float32: 3e-7, torch.bfloat16: 2.0**-8}  # half a unit in the last place of bf16 is 2⁻⁹
KINDS = st.sampled_from(list(DTYPES))
MASKS = st.sampled_from(["none", "keys", "rows", "one", "all keys alike", "expanded"])
SCALES = st.sampled_from([0.3, 0.0, -0.3])
SEEDS = st.integers(0, 2**31)


@pytest.fixture(autouse=True)
def _compiler(kernel_cache: Path) -> None:
    if not rows.serves(torch.zeros(1)):
        pytest.skip("no compiled passes over rows here")


def draw(seed: int, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=generator) * 2).to(dtype) for shape in shapes]


def near(
    found: Tensor, exact: Tensor, dtype: torch.dtype, times: float = 1.0, parts: Tensor | None = None
) -> bool:
    """Whether ``found`` has the right dtype and shape, and differs from ``exact`` by rounding only.

    The tolerance is ``times`` the rounding of the exact value and of the largest one. If terms cancel,
    ``parts`` gives their magnitudes: a difference near 0 keeps the error of its terms in any implementation,
    torch's too.
    """
    same = found.dtype == dtype and found.shape == exact.shape
    size = exact.abs().double() + (exact.abs().max() if parts is None else parts)
    return same and bool(((found.double() - exact.double()).abs() <= times * DTYPES[dtype] * size).all())


def rotated(x_BHLD: Tensor, cosine_BLD: Tensor, sine_BLD: Tensor, sign: int) -> Tensor:
    first, second = x_BHLD.chunk(2, -1)
    return x_BHLD * cosine_BLD[:, None] + torch.cat([sign * second, first], -1) * sine_BLD[:, None]


def gradients(exact: Tensor, inputs: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(exact, inputs, grad.double())


@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 70),
    MASKS,
    SCALES,
    KINDS,
    SEEDS,
)
def test_softmax_and_its_gradient_equal_float64(
    batch: int, heads: int, length: int, keys: int, masked: str, scale: float, dtype: torch.dtype, seed: int
) -> None:
    scores, grad = draw(seed, dtype, (batch * heads, length, keys), (batch * heads, length, keys))
    mask = None
    if masked != "none":
        by_row, by_key = masked not in ("keys", "expanded"), masked != "all keys alike"
        shape = (1 if masked == "one" else batch, 1, length if by_row else 1, keys if by_key else 1)
        hidden = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4
        mask = torch.zeros(shape, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)
        mask = mask.expand(batch, 1, length, keys) if masked == "expanded" else mask
    leaf = scores.double().requires_grad_()
    shifted = leaf.view(batch, heads, length, keys) * scale
    exact = torch.softmax(shifted if mask is None else (shifted + mask.double()), -1).view(scores.shape)
    shares = rows.softmax_(scores.clone(), mask, scale, length, heads)
    assert near(shares, exact.detach(), dtype)
    # The gradient is computed from the rounded softmax, as in torch.
    expected = torch._softmax_backward_data(grad.double(), shares.double(), -1, torch.float64) * scale
    parts = (
        (grad.double().abs() + (grad.double() * shares.double()).abs().sum(-1, keepdim=True))
        * shares.double()
        * abs(scale)
    )
    assert near(rows.softmax_gradient_(grad.clone(), shares, scale), expected, dtype, parts=parts)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 80), KINDS, SEEDS)
def test_rms_norm_and_its_gradient_equal_float64(
    batch: int, length: int, size: int, dtype: torch.dtype, seed: int
) -> None:
    x, grad = draw(seed, dtype, (batch, length, size), (batch, length, size))
    weight = draw(seed + 1, torch.float32, (size,))[0]
    leaf = x.double().requires_grad_()
    exact = weight.double() * leaf * torch.rsqrt(leaf.square().mean(-1, keepdim=True) + 1e-5)
    found, scale = rows.rms_norm(x, weight, 1e-5)
    assert near(found, exact.detach(), dtype)
    assert scale.dtype == torch.float32 and scale.shape == (batch, length, 1)
    (expected,) = gradients(exact, [leaf], grad)
    pulled, normed = (grad.double() * weight.double()).abs(), (x.double() * scale.double()).abs()
    parts = scale.double() * (pulled + normed * (pulled * normed).mean(-1, keepdim=True))
    assert near(rows.rms_norm_gradient(grad, x, weight, scale), expected, dtype, parts=parts)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 7), st.integers(1, 700), KINDS, SEEDS)
def test_swiglu_and_its_gradients_equal_float64(count: int, size: int, dtype: torch.dtype, seed: int) -> None:
    gate, up, grad = draw(seed, dtype, *[(count, size)] * 3)
    leaves = [gate.double().requires_grad_(), up.double().requires_grad_()]
    exact = F.silu(leaves[0]) * leaves[1]
    assert near(rows.swiglu(gate, up), exact.detach(), dtype)
    to_gate, to_up = rows.swiglu_gradients_(grad.clone(), gate, up)
    expected_gate, expected_up = gradients(exact, leaves, grad)
    # The two terms of silu's derivative, s and x·s·(1 - s), cancel near -1.28.
    share, terms = torch.sigmoid(gate.double()), (grad.double() * up.double()).abs()
    assert near(to_gate, expected_gate, dtype, parts=terms * share * (1 + gate.double().abs() * (1 - share)))
    assert near(to_up, expected_up, dtype)


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 40), st.booleans(), KINDS, SEEDS
)
def test_rotary_positions_and_their_gradient_equal_float64(
    batch: int, heads: int, length: int, half: int, shared: bool, dtype: torch.dtype, seed: int
) -> None:
    """x in the memory order (B, L, H, D) of a product; angles shared or per sequence, halves unequal."""
    x, grad = draw(seed, dtype, (batch, length, heads, 2 * half), (batch, heads, length, 2 * half))
    angles = torch.randn(
        1 if shared else batch, length, 2 * half, generator=torch.Generator().manual_seed(seed)
    )
    cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
    leaf = x.transpose(1, 2).double().requires_grad_()
    exact = rotated(leaf, cosine.double(), sine.double(), -1)
    terms = rotated(leaf.abs(), cosine.double().abs(), sine.double().abs(), 1)
    (expected,), (back_terms,) = gradients(exact, [leaf], grad), gradients(terms, [leaf], grad.abs())
    found = rows.rotate(x.transpose(1, 2), cosine, sine)
    assert near(found, exact.detach(), dtype, parts=terms.detach())
    assert found.is_contiguous()
    back = rows.rotate(grad, cosine, sine, back=True)
    assert near(back, expected, dtype, parts=back_terms.abs())
    assert back.transpose(1, 2).is_contiguous()


def test_a_mask_of_another_shape_is_refused_as_torch_does() -> None:
    with pytest.raises(RuntimeError, match="expanded size"):
        rows.softmax_(torch.randn(8, 4, 5), torch.zeros(2, 1, 4, 9), 1.0, 4, 4)


def strided(tensor: Tensor) -> Tensor:
    """The same values, not contiguous within a row."""
    return tensor.repeat_interleave(2, -1)[..., ::2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_non_contiguous_inputs_give_the_same_results(dtype: torch.dtype) -> None:
    x, y, z = draw(0, dtype, *[(4, 6, 34)] * 3)
    weight, (cosine, sine) = torch.rand(34), draw(1, dtype, (1, 6, 34), (1, 6, 34))
    normed, scale = rows.rms_norm(x, weight, 1e-6)
    assert torch.equal(rows.rms_norm(strided(x), weight, 1e-6)[0], normed)
    assert torch.equal(
        rows.rms_norm_gradient(strided(y), strided(x), weight, scale),
        rows.rms_norm_gradient(y, x, weight, scale),
    )
    assert torch.equal(rows.swiglu(strided(x), strided(y)), rows.swiglu(x, y))
    apart, together = (
        rows.swiglu_gradients_(strided(z), strided(x), strided(y)),
        rows.swiglu_gradients_(z.clone(), x, y),
    )
    assert all(torch.equal(*pair) for pair in zip(apart, together, strict=True))
    for back in (False, True):
        contiguous = rows.rotate(x[None], cosine, sine, back=back)
        assert torch.equal(
            rows.rotate(strided(x)[None], strided(cosine), strided(sine), back=back), contiguous
        )


def every_pass(dtype: torch.dtype) -> list[Tensor]:
    """One result per pass, large enough for two threads, with widths that are no multiple of a vector."""
    x, y, z = draw(0, dtype, *[(37, 9, 133)] * 3)
    weight = draw(1, torch.float32, (133,))[0]
    q, cosine, sine = draw(2, dtype, (3, 5, 61, 66), (1, 61, 66), (1, 61, 66))
    normed, scale = rows.rms_norm(x, weight, 1e-6)
    mask = torch.zeros(3, 1, 3, 133, dtype=dtype, device=x.device)
    mask[1:, :, :2, :50] = -9.0
    shares = rows.softmax_(x[:36].clone(), mask, 0.5, 3, 36)  # by sequence, head and position
    made = [
        normed,
        scale,
        rows.rms_norm_gradient(y, x, weight, scale),
        shares,
        rows.softmax_gradient_(y[:36].clone(), shares, 0.5),
    ]
    made += [rows.swiglu(x, y), *rows.swiglu_gradients_(z.clone(), x, y)]
    return [*made, rows.rotate(q, cosine, sine), rows.rotate(q, cosine, sine, back=True)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_do_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    if build.load(build.ROWS).openmp is None:
        pytest.skip("compiled for one thread here")
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
def test_older_cpu_targets_agree_up_to_rounding(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With registers of four and eight numbers, and row ends without masked loads."""
    new = {dtype: every_pass(dtype) for dtype in DTYPES}
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "_TARGETS", ((f"-march={target}",),))
    older = rows.with_types(build.load(build.ROWS).library)
    monkeypatch.setattr(rows, "_built", lambda: older)
    for dtype, expected in new.items():
        for found, one in zip(every_pass(dtype), expected, strict=True):
            assert near(found, one, one.dtype, times=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_propagate_as_in_torch(bad: float, dtype: torch.dtype) -> None:
    """A diverging run must be noticed."""
    x = torch.ones(2, 33, dtype=dtype)
    x[0, 17] = bad
    one = torch.ones_like(x)
    passes: list[Callable[[Tensor], Tensor]] = [
        lambda x: rows.softmax_(x.clone(), None, 1.0, 1, 1),
        lambda x: rows.rms_norm(x, torch.ones(33), 1e-6)[0],
        lambda x: rows.swiglu(x, torch.ones_like(x)),
        lambda x: rows.swiglu(torch.ones_like(x), x),
        lambda x: rows.softmax_gradient_(x.clone(), one / 33, 1.0),
        lambda x: rows.rms_norm_gradient(x, one, torch.ones(33), torch.ones(2, 1)),
        lambda x: rows.swiglu_gradients_(x.clone(), one, one)[0],
        lambda x: rows.rotate(x[None, None, :, 1:], one[None, :, 1:], one[None, :, 1:]),
    ]
    plain: list[Callable[[Tensor], Tensor]] = [
        lambda x: torch.softmax(x, -1),
        lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6),
        lambda x: F.silu(x),
        lambda x: F.silu(torch.ones_like(x)) * x,
        lambda x: torch._softmax_backward_data(x.float(), one.float() / 33, -1, torch.float32),
        lambda x: x - x.mean(-1, keepdim=True),
        lambda x: x.clone(),
        lambda x: (x[:, 1:] + torch.cat([-x[:, 17:], x[:, 1:17]], -1))[None, None],
    ]
    for compiled, torchs in zip(passes, plain, strict=True):
        assert torch.equal(compiled(x).isfinite(), torchs(x).isfinite())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_with_all_keys_masked_equals_torchs(dtype: torch.dtype) -> None:
    scores, mask = (
        torch.randn(2, 3, 5).to(dtype),
        torch.full((2, 1, 3, 5), torch.finfo(dtype).min, dtype=dtype),
    )
    expected = torch.softmax(scores.float() + mask[:, 0].float(), -1)
    assert near(rows.softmax_(scores, mask, 1.0, 3, 1), expected, dtype)


def test_meta_tensors_give_shapes_dtypes_and_strides() -> None:
    """Used to predict memory: same shapes, dtypes and strides, without values."""
    real = every_pass(torch.bfloat16)
    with pytest.MonkeyPatch.context() as patch:
        drawn = draw
        patch.setitem(globals(), "draw", lambda *of: [tensor.to("meta") for tensor in drawn(*of)])
        paper = every_pass(torch.bfloat16)
    assert all(tensor.is_meta for tensor in paper)
    assert [(t.shape, t.dtype, t.stride()) for t in paper] == [(t.shape, t.dtype, t.stride()) for t in real]


class _Subclass(Tensor):
    """A tensor subclass that may have no memory of its own."""


def test_unsupported_tensors_are_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(3)
    assert (
        rows.serves(x)
        and rows.serves(x.bfloat16())
        and rows.serves(x.to("meta"))
        and rows.serves(torch.nn.Parameter(x), x)
    )
    served: list[Any] = [x.half(), x.double(), x.as_subclass(_Subclass)]
    assert not any(rows.serves(tensor) for tensor in served) and not rows.serves(x, x.bfloat16())
    monkeypatch.setattr(kernels, "switched_off", lambda: True)
    assert not rows.serves(x)


def test_without_a_library_nothing_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "compiled as well: computation between products" in status.kernels_status()
    monkeypatch.setattr(rows, "_built", lambda: "no room left")
    assert not rows.serves(torch.zeros(3))
    assert "computation between products is plain torch's: no room left" in status.kernels_status()
