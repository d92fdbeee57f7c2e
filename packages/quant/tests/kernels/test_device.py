"""Triton kernels against plain decoding: on a GPU, and in Triton's interpreter where Triton is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from bitrank_quant import kernels, parse_format
from bitrank_quant.kernels import device

TEXTS = (
    "int2-g64", "int3-g32", "int3-g96", "int4-g64", "int5-g128", "int6-g64", "int7-g64", "int8-g64",
    "int4-g64-dq", "sym4-g64", "nf4", "nf3", "nf4-dq", "nf3-dq", "fp4", "int8",
)  # fmt: skip
SHAPES = ((5, 192), (7, 100), (33, 64), (300, 576))
only_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA or ROCm")


@only_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("text", TEXTS)
def test_decoding_on_the_gpu_equals_plain_decoding(text: str, dtype: torch.dtype) -> None:
    assert device.problem() is None
    fmt = parse_format(text)
    for shape in SHAPES:
        tensors = fmt.encode(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        expected = fmt.decode(tensors, shape, dtype)
        found = fmt.decode({name: part.cuda() for name, part in tensors.items()}, shape, dtype).cpu()
        # A fused multiply-add rounds once where the CPU rounds twice.
        digit = {torch.float32: 2**-21, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
        assert torch.allclose(found.float(), expected.float(), rtol=digit, atol=digit / 16), shape


@only_cuda
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_gpu_kernel_serves_affine_formats(bits: int) -> None:
    tensors = parse_format(f"int{bits}-g64").encode(torch.randn(8, 128))
    codes, scale, minimum = (tensors[name].cuda() for name in ("codes", "scale", "minimum"))
    assert kernels.affine(codes, (scale, minimum), bits, 64, (8, 128), torch.bfloat16) is not None
    assert kernels.affine(codes, (scale, minimum), bits, 64, (8, 128), torch.float64) is None


@only_cuda
def test_books_are_copied_to_the_gpu_once() -> None:
    book = torch.linspace(0, 1, 16)
    first = device.book_on(book, torch.device("cuda", 0))
    assert first.is_cuda and device.book_on(book, torch.device("cuda", 0)) is first


def test_without_triton_plain_torch_decodes(monkeypatch) -> None:
    monkeypatch.delenv("BITRANK_KERNELS", raising=False)
    monkeypatch.setattr(device, "find_spec", lambda _: None)
    device.problem.cache_clear()
    assert device.problem() == "no Triton"
    device.problem.cache_clear()


@pytest.mark.parametrize(
    ("checks", "problem"),
    [
        (
            {"rows": lambda: False, "books": lambda: True},
            "Triton's kernels for rows compute other numbers here",
        ),
        ({"rows": lambda: 1 / 0}, "Triton fails here: ZeroDivisionError: division by zero"),
        ({"rows": lambda: True}, None),
    ],
)
def test_kernels_that_fail_or_differ_are_not_used(monkeypatch, checks, problem: str | None) -> None:
    monkeypatch.delenv("BITRANK_KERNELS", raising=False)
    monkeypatch.setattr(device, "find_spec", lambda _: object())
    monkeypatch.setattr(device, "_CHECKS", checks)
    device.problem.cache_clear()
    assert (device.problem() or "").startswith(problem or "") and (device.problem() is None) == (not problem)
    device.problem.cache_clear()


def test_books_stay_on_the_cpu() -> None:
    book = torch.linspace(0, 1, 16)
    assert device.book_on(book, torch.device("cpu")) is book


INTERPRETED = """
import sys
import torch
from bitrank_quant import parse_format
from bitrank_quant.formats.codebook import CODEBOOKS, DYNAMIC_8BIT, decode_dynamic_8bit
from bitrank_quant.kernels import triton_decode

def decoded(fmt, tensors, made):
    if "absmax" in tensors:
        absmax = tensors["absmax"]
        if "outer" in tensors:
            absmax = torch.empty(tensors["absmax"].numel())
            nested = tensors["absmax"], DYNAMIC_8BIT, tensors["outer"], tensors["offset"]
            triton_decode.launch_nested(*nested, absmax, 0)
        book = CODEBOOKS[fmt.name]
        triton_decode.launch_codebook(tensors["codes"], book, absmax, made, fmt.bits, fmt.block)
    elif fmt.block is None:
        triton_decode.launch_rows(tensors["codes"], tensors["scale"], made)
    else:
        scale = tensors["scale"]
        minimum = scale * -fmt.zero if "minimum" not in tensors else tensors["minimum"]
        if "scale_outer" in tensors:
            scale, minimum = fmt.read_scales(tensors)
        triton_decode.launch_affine(tensors["codes"], scale, minimum, made, fmt.bits, fmt.block)
    return made

torch.manual_seed(0)
for text in sys.argv[1:]:
    fmt = parse_format(text)
    for shape in ((5, 192), (7, 100), (33, 64)):
        tensors = fmt.encode(torch.randn(shape))
        made = decoded(fmt, tensors, torch.full(shape, float("nan")))
        expected = fmt.decode(tensors, shape, torch.float32)
        assert torch.allclose(made, expected, rtol=1e-6, atol=1e-6), (text, shape)
print("equal")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_interpreted_kernels_equal_plain_decoding() -> None:
    source = str(Path(kernels.__file__).parents[2])
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-c", INTERPRETED, *TEXTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]
