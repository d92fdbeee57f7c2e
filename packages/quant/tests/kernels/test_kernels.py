"""Compiled decoding is bit-identical to plain torch, and its absence is reported."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitrank_quant import (
    BACKENDS,
    Affine,
    Codebook,
    Format,
    Int8Row,
    QuantWeight,
    decoder,
    kernels,
    kernels_status,
    parse_format,
)
from bitrank_quant.formats.codebook import decode_dynamic_8bit, dynamic_map_8bit, encode_dynamic_8bit
from bitrank_quant.kernels import build
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = st.one_of(
    st.builds(Affine, st.integers(2, 8), st.sampled_from([1, 7, 8, 32, 64, 96, 128, 1500])),
    st.builds(Codebook, st.sampled_from(["nf4", "fp4"]), st.sampled_from([1, 5, 32, 64, 256]), st.booleans()),
    st.just(Int8Row()),
)


@pytest.fixture(autouse=True)
def _compiler(kernel_cache: Path) -> None:
    if not kernels_status().startswith("compiled"):
        pytest.skip(kernels_status())


def plain(function: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The result of ``function`` without kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "switched_off", lambda: True)  # the environment is read once per process
        return function()


def both(fmt: Format, weight: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    encoded, shape = fmt.encode(weight), (weight.shape[0], weight.shape[1])
    return fmt.decode(encoded, shape, dtype), plain(lambda: fmt.decode(encoded, shape, dtype))


def in_a_process(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env=os.environ | environment,
    )
    return done.stdout.strip()


@settings(deadline=None, max_examples=250)
@given(
    FORMATS,
    st.integers(1, 6),
    st.integers(1, 2300),
    st.sampled_from(DTYPES),
    st.floats(1e-9, 1e6),
    st.integers(0, 2**31),
)
def test_every_format_decodes_bit_identically_to_torch(
    fmt: Format, rows: int, columns: int, dtype: torch.dtype, size: float, seed: int
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    got, expected = both(fmt, weight, dtype)
    assert got.dtype == dtype and got.is_contiguous()
    assert torch.equal(got, expected)


@pytest.mark.parametrize("text", ["int8", "nf4", "nf4-dq", *(f"int{bits}-g64" for bits in range(2, 9))])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_do_not_depend_on_the_number_of_threads(text: str, dtype: torch.dtype) -> None:
    weight = torch.randn(517, 576, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        got, expected = both(parse_format(text), weight, dtype)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got, expected)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 3000), st.integers(0, 2900), st.integers(1, 3000), st.integers(0, 2**31))
def test_nested_scales_equal_torchs(count: int, first: int, length: int, seed: int) -> None:
    """All of them, and ranges that begin and end anywhere in a block of 256."""
    absmax_N = torch.rand(count, generator=torch.Generator().manual_seed(seed)) * 5
    tensors, part = encode_dynamic_8bit(absmax_N), slice(min(first, count), min(first + length, count))
    fast = kernels.nested_scales(
        tensors["absmax"][part], dynamic_map_8bit(), tensors["outer"], tensors["offset"], part.start
    )
    assert fast is not None
    assert torch.equal(fast, plain(lambda: decode_dynamic_8bit(tensors, part)))
    assert torch.equal(fast, decode_dynamic_8bit(tensors)[part])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86-64")
@pytest.mark.parametrize("target", ["x86-64", "x86-64-v2", "x86-64-v3"])
def test_older_cpu_targets_decode_identically(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without shuffles, with SSSE3, and with AVX2: separate code paths in the source."""
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "_TARGETS", ((f"-march={target}",),))
    built = kernels.with_types(build.load())
    monkeypatch.setattr(kernels, "built_kernels", lambda: built)
    weight = torch.randn(9, 1111, generator=torch.Generator().manual_seed(0))
    for text in (
        "int8",
        "nf4",
        "nf4-dq",
        "fp4-g100",
        "fp4-g5-dq",
        *(f"int{bits}-g{group}" for bits in range(2, 9) for group in (7, 64)),
    ):
        for dtype in DTYPES:
            got, expected = both(parse_format(text), weight, dtype)
            assert torch.equal(got, expected), (text, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_equals_torchs_for_every_kind_of_number(dtype: torch.dtype) -> None:
    """Subnormals, ties, overflow, infinities and NaN: a million bit patterns as scales of code 1."""
    patterns = torch.arange(-(2**31), 2**31, 4093, dtype=torch.int64).to(torch.int32).view(torch.float32)
    absmax_N = torch.cat(
        [patterns, torch.tensor([65519.9, 65520.0, 2**-25, 3 * 2**-25, 1 + 2**-8, 1 + 3 * 2**-8, torch.inf])]
    )
    book = torch.zeros(16).index_fill_(0, torch.tensor([1]), 1.0)
    codes = torch.full((absmax_N.numel(),), 0x10, dtype=torch.uint8)
    made = kernels.codebook(codes, book, absmax_N, 2, (absmax_N.numel(), 2), dtype)
    assert made is not None
    assert torch.equal(made[:, 0].isnan(), absmax_N.isnan())
    assert torch.equal(made[:, 0].nan_to_num(7.0), absmax_N.to(dtype).nan_to_num(7.0))


@pytest.mark.parametrize("stored", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_scale_is_not_rounded_before_it_multiplies(stored: torch.dtype, dtype: torch.dtype) -> None:
    """Every 16-bit pattern as a scale of each dtype, decoded into each dtype."""
    patterns = (
        torch.arange(-(2**15), 2**15)
        .to(torch.int16)
        .view(torch.bfloat16 if stored == torch.float32 else torch.float16)
    )
    scale_O = (patterns.float() * 1.00390625).to(stored)  # gives fp32 scales more digits than 16 bits hold
    codes_OI = torch.tensor([[-127, 1, 3]], dtype=torch.int8).repeat(len(scale_O), 1)
    made = kernels.int8_rows(codes_OI, scale_O, dtype)
    assert made is not None
    expected = (codes_OI.float() * scale_O.float()[:, None]).to(dtype)
    assert torch.equal(made.isnan(), expected.isnan())
    assert torch.equal(made.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("text", ["int8", "int4-g64", "int2-g64"])
@pytest.mark.parametrize("shape", [(96, 128), (3, 64), (5, 192)])
def test_quanto_layers_decode_as_quanto_does(text: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    linear = nn.Linear(shape[1], shape[0], bias=False, dtype=dtype).requires_grad_(False)
    layer = BACKENDS["quanto"].make(linear, parse_format(text), dtype)
    fast = decoder(layer)
    assert fast is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(layer.weight), "dequantize", None)  # proves that the kernels decoded
        got = fast()
    assert torch.equal(got, layer.weight.dequantize())
    assert torch.equal(plain(fast), got)


@pytest.mark.parametrize("text", ["int8", "int3-g64", "nf4-dq"])
def test_rows_of_an_embedding_are_rows_of_the_matrix(text: str) -> None:
    quantized = QuantWeight(torch.randn(40, 128), parse_format(text), torch.bfloat16)
    ids = torch.tensor([[3, 39], [3, 0]])
    assert torch.equal(quantized.decode_rows(ids), plain(quantized.decode)[ids])


def test_kernels_return_none_for_unsupported_tensors() -> None:
    fmt, weight = Affine(4, 64), torch.randn(4, 128)
    parts = fmt.encode(weight)

    def call(codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        return kernels.affine(codes, (parts["scale"], parts["minimum"]), 4, 64, (4, 128), dtype)

    assert call(parts["codes"], torch.bfloat16) is not None
    assert call(parts["codes"], torch.float64) is None
    assert call(parts["codes"][:-1], torch.bfloat16) is None
    assert call(parts["codes"].repeat_interleave(2)[::2], torch.bfloat16) is None
    assert call(parts["codes"].to("meta"), torch.bfloat16) is None
    codes, scale = torch.ones(2, 2, dtype=torch.int8), torch.ones(2)
    assert kernels.int8_rows(codes, scale, torch.bfloat16) is not None
    assert kernels.int8_rows(codes, scale.double(), torch.bfloat16) is None
    assert kernels.int8_rows(codes, scale.requires_grad_(), torch.bfloat16) is None
    scales = torch.zeros(8, dtype=torch.uint8), torch.zeros(256), torch.zeros(1), torch.zeros(())
    for wrong, tensor in (
        (0, scales[0][:7]),
        (1, scales[1][:16]),
        (2, scales[2][:0]),
        (3, scales[3].double()),
    ):
        nested = (*scales[:wrong], tensor, *scales[wrong + 1 :])
        assert (
            kernels.nested_codebook(parts["codes"], torch.zeros(16), nested, 64, (4, 128), torch.bfloat16)
            is None
        )
    assert (
        kernels.nested_codebook(parts["codes"], torch.zeros(16), scales, 64, (4, 128), torch.bfloat16)
        is not None
    )
    assert fmt.decode(parts, (4, 128), torch.float64).dtype == torch.float64


def test_a_traced_decoding_is_plain_torch() -> None:
    fmt, weight = Affine(4, 64), torch.randn(4, 128)
    parts = fmt.encode(weight)
    traced = torch.compile(
        lambda: fmt.decode(parts, (4, 128), torch.float32), backend="eager", fullgraph=True
    )
    assert torch.equal(traced(), fmt.decode(parts, (4, 128), torch.float32))


DECODE = (
    "import torch; from bitrank_quant import kernels_status, parse_format; f = parse_format('int4-g64'); "
    "e = f.encode(torch.ones(640, 640)); f.decode(e, (640, 640), torch.bfloat16); "
)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_one_openmp_runtime_in_the_process() -> None:
    code = DECODE + (
        "import re; maps = open('/proc/self/maps').read(); assert 'decode-' in maps; "
        "print(sorted(set(re.findall(r'\\S*lib(?:gomp|omp|iomp5)[-.]\\S*', maps))))"
    )
    runtimes = json.loads(in_a_process(code).splitlines()[-1].replace("'", '"'))
    assert len(runtimes) == 1
    assert Path(runtimes[0]).resolve() == Path(str(build.torch_openmp())).resolve()


def test_two_processes_that_compile_at_once_both_get_the_kernels(tmp_path: Path) -> None:
    environment = os.environ | {"BITRANK_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", DECODE + "print(kernels_status())"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    output = [process.communicate(timeout=300)[0] for process in both]
    assert [text.startswith("compiled kernels") for text in output] == [True, True]
    libraries = {path.name.partition("-")[0] for path in (tmp_path / "kernels").glob("*.so")}
    assert libraries == {"decode", "quantize", "rows"}


@pytest.mark.parametrize("damage", ["library", "digest"])
def test_a_broken_cache_is_built_again(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path))
    # Built by another process: this one must not have mapped the file that is truncated below.
    in_a_process("from bitrank_quant import kernels_status; kernels_status()", BITRANK_CACHE=str(tmp_path))
    (library,) = (tmp_path / "kernels").glob("decode-*.so")
    whole = library.read_bytes()
    (library if damage == "library" else library.with_suffix(".json")).write_bytes(whole[:100])
    assert isinstance(kernels.with_types(build.load()), build.Built)
    assert library.stat().st_size > 1000
    assert json.loads(library.with_suffix(".json").read_text())["sha256"]


def test_without_a_compiler_torch_decodes_and_the_status_gives_the_reason(tmp_path: Path) -> None:
    code = DECODE + "print(f.decode(e, (640, 640), torch.bfloat16).sum().item(), kernels_status())"
    output = in_a_process(code, PATH=str(tmp_path), CC="", BITRANK_CACHE=str(tmp_path))
    assert output.startswith(f"{640 * 640:.1f} plain torch decodes low-bit weights")
    assert "no C compiler found" in output and "install" in output


def test_a_failing_compiler_is_reported_with_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\ncase \"$*\" in *-dM*) exit 0;; esac\necho 'no room left' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path / "cache"))
    with pytest.raises(build.BuildError, match="cannot compile the kernels: no room left"):
        build.load()
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_an_unwritable_cache_raises_a_build_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path / "file"))
    with pytest.raises(build.BuildError, match="cannot be kept"):
        build.load()


def _built_in(folder: Path) -> Path:
    """A library built by this user in ``folder``."""
    folder.mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITRANK_CACHE", str(folder))
        build.load()
    return next((folder / "kernels").glob("decode-*.so"))


def test_a_library_that_others_may_write_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = _built_in(tmp_path / "cache")
    before = library.stat().st_ino
    library.chmod(0o666)
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path / "cache"))
    build.load()
    assert library.stat().st_ino != before
    assert library.stat().st_mode & 0o077 == 0


def test_a_cache_that_others_may_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = _built_in(tmp_path / "cache")
    library.parent.chmod(0o777)
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path / "cache"))
    with pytest.raises(build.BuildError, match=r"other users may write to .*chmod 700"):
        build.load()


def test_own_cache_that_others_may_read_is_closed_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = _built_in(tmp_path / "cache")
    library.parent.chmod(0o755)
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path / "cache"))
    build.load()
    assert library.parent.stat().st_mode & 0o777 == 0o700


def test_a_cache_that_is_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = _built_in(tmp_path / "cache")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/kernels").symlink_to(library.parent)
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path / "other"))
    with pytest.raises(build.BuildError, match="is a symbolic link"):
        build.load()


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give files to another user"
)
@pytest.mark.parametrize("foreign", ["folder", "library", "digest"])
def test_a_library_of_another_user_is_never_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, foreign: str
) -> None:
    """The planted library has a matching digest; only its owner gives it away."""
    library = _built_in(tmp_path / "cache")
    digest = library.with_suffix(".json")
    library.write_bytes(b"\x7fELF planted")
    digest.write_text(
        json.dumps({"sha256": hashlib.sha256(library.read_bytes()).hexdigest(), "openmp": None})
    )
    os.chown({"folder": library.parent, "library": library, "digest": digest}[foreign], 65534, 65534)
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path / "cache"))
    if foreign == "folder":
        with pytest.raises(build.BuildError, match="belongs to user 65534"):
            build.load()
    else:
        build.load()
        assert library.read_bytes()[:4] == b"\x7fELF" and b"planted" not in library.read_bytes()[:20]
        assert library.stat().st_uid == os.getuid()


def test_the_environment_variable_disables_the_kernels() -> None:
    code = (
        "import torch; from bitrank_quant import kernels, kernels_status; "
        "codes = torch.zeros(2, 2, dtype=torch.int8); "
        "print(kernels.int8_rows(codes, torch.ones(2), torch.bfloat16), kernels_status())"
    )
    assert (
        in_a_process(code, BITRANK_KERNELS="0")
        == "None plain torch decodes low-bit weights: BITRANK_KERNELS=0"
    )
    assert in_a_process(code, BITRANK_KERNELS="1").startswith("tensor")
