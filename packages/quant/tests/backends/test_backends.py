"""bitsandbytes and quanto layers against the reference, forward and backward, and backend overrides."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bitrank_quant import (
    BACKENDS,
    FORMATS,
    OVERRIDES,
    QuantError,
    apply_precision,
    available_overrides,
    choose_backend,
    override_for,
    parse_format,
    probe,
    rejected,
    try_format,
)
from bitrank_quant.backends.probe import cached_probe
from torch import nn

SERVED = [
    (b.name, text)
    for b in BACKENDS.values()
    for text, fmt in FORMATS.items()
    if b.serves(fmt) and fmt.bits < 16
]


@pytest.mark.parametrize(("backend", "text"), SERVED)
def test_output_and_gradient_equal_the_reference(backend: str, text: str) -> None:
    if text == "int2-g64" and backend == "quanto":
        pytest.skip("quanto rounds its 2-bit scales differently: 7 % off the reference, see the README")
    torch.manual_seed(0)
    linear = nn.Linear(128, 96).requires_grad_(False)
    fmt = parse_format(text)
    weight = fmt.decode(fmt.encode(linear.weight), (96, 128), torch.float32)
    x = torch.randn(7, 128, requires_grad=True)
    expected = x @ weight.T + linear.bias
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), x)
    y = BACKENDS[backend].make(linear, fmt, torch.float32)(x)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    tolerance = 1e-4
    if backend == "quanto":
        tolerance = 0.05  # it chooses 4-bit scales differently
    elif text == "llm-int8":
        tolerance = 0.02  # activations are rounded as well
    elif text.endswith("dq"):
        tolerance = 0.01
    assert (y - expected).norm() / expected.norm() < tolerance
    assert (grad - expected_grad).norm() / expected_grad.norm() < tolerance


def test_training_after_an_evaluation_still_has_gradients() -> None:
    """bitsandbytes repacks 4-bit codes at the first CPU evaluation; the packed product has no backward."""
    layer = BACKENDS["bitsandbytes"].make(
        nn.Linear(128, 64, dtype=torch.bfloat16), parse_format("nf4"), torch.bfloat16
    )
    with torch.no_grad():
        before = layer.eval()(torch.ones(1, 128, dtype=torch.bfloat16))
    x = torch.ones(1, 128, dtype=torch.bfloat16, requires_grad=True)
    after = layer.train()(x)
    after.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert torch.allclose(before, after, atol=0.05)


@pytest.mark.parametrize("text", ["nf4-dq", "llm-int8", "int8", "int4-g64"])
def test_probe_passes_for_the_chosen_backend(text: str) -> None:
    fmt = parse_format(text)
    assert probe(choose_backend(fmt, "cpu"), fmt, "cpu") is None


def test_probe_reports_a_failure_instead_of_raising() -> None:
    reason = probe(BACKENDS["bitsandbytes"], parse_format("nf4"), "meta")
    assert reason is not None and "\n" not in reason


def test_a_trial_measures_output_and_gradient() -> None:
    """llm-int8 rounds activations: the output is off by about 1 %, the gradient only by rounding."""
    trial = try_format(BACKENDS["torch"], parse_format("llm-int8"), "cpu", torch.float32)
    assert trial.problem is None and 1e-3 < trial.output_error < 0.02 and trial.gradient_error < 1e-5
    off = try_format(BACKENDS["quanto"], parse_format("int2-g64"), "cpu")
    assert "is off by" in off.problem and max(off.output_error, off.gradient_error) > 0.05


def test_a_trial_does_not_change_the_global_random_state() -> None:
    before = torch.get_rng_state()
    for name in ("bitsandbytes", "quanto"):
        try_format(BACKENDS[name], parse_format("nf4" if name == "bitsandbytes" else "int4-g64"), "cpu")
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch):
    """bitsandbytes with a native library that raises at the first call, as if none had been built."""
    from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary

    library = ErrorHandlerMockBNBNativeLibrary("")

    def make(linear, fmt, dtype):
        library.cquantize_blockwise_bf16_nf4()

    monkeypatch.setitem(BACKENDS, "bitsandbytes", replace(BACKENDS["bitsandbytes"], make=make))
    cached_probe.cache_clear()
    yield
    cached_probe.cache_clear()


def test_a_failing_backend_is_skipped_and_its_reason_reported(broken) -> None:
    model = nn.Sequential(nn.Linear(128, 64)).requires_grad_(False)
    done = apply_precision(model, {"0": "nf4"}, compute_dtype=torch.float32)
    assert done["0"].backend == "torch"
    (reason,) = rejected(parse_format("nf4"), "cpu", torch.float32).values()
    assert "Attempted to use bitsandbytes native library functionality but it's not available" in reason
    assert rejected(parse_format("int4-g64"), "cpu") == {}


def test_a_failing_backend_requested_by_name_raises(broken) -> None:
    with pytest.raises(
        QuantError,
        match=r"'cpu-4bit' cannot run here: RuntimeError: .*native library.*; here: auto, cpu-int8",
    ):
        override_for("cpu-4bit", "cpu")


def test_an_unavailable_override_raises_and_lists_the_available_ones() -> None:
    with pytest.raises(QuantError, match=r"'cuda-4bit' cannot run here.*cpu-4bit"):
        override_for("cuda-4bit", "cpu")
    with pytest.raises(QuantError, match=r"unknown quant backend 'gpu'.*auto"):
        override_for("gpu", "cpu")


def test_a_cpu_serves_all_but_the_cuda_overrides() -> None:
    assert available_overrides("cpu") == [name for name in OVERRIDES if not name.startswith("cuda")]


def test_quanto_builds_in_the_cache_and_a_killed_build_does_not_hang_the_next_process(tmp_path: Path) -> None:
    """torch's extension loader waits forever for a lock file, which the test creates like a killed build."""
    quanto = pytest.importorskip("optimum.quanto")
    installed = sorted(Path(quanto.__file__).parent.rglob("build/*"))
    code = (
        "from bitrank_quant import BACKENDS, parse_format, probe; "
        "print(probe(BACKENDS['quanto'], parse_format('int4-g64'), 'cpu'))"
    )
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
            env=os.environ | {"BITRANK_CACHE": str(tmp_path)},
        )
        assert done.stdout.splitlines()[-1] == "None"
        (folder,) = tmp_path.glob("kernels/quanto-*/quanto_cpp")
        assert list(folder.glob("*.so")) and not (folder / "lock").exists()
        (folder / "lock").touch()
    assert sorted(Path(quanto.__file__).parent.rglob("build/*")) == installed


def test_every_override_names_a_backend_that_serves_its_format() -> None:
    for name, override in OVERRIDES.items():
        if override.backend is not None and override.format != "bf16":
            assert BACKENDS[override.backend].serves(parse_format(override.format)), name


def test_names_of_overrides_are_known_without_torch() -> None:
    code = "import sys; from bitrank_quant import OVERRIDES; print('torch' in sys.modules, *OVERRIDES)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", *OVERRIDES]


def test_every_public_name_is_there_and_no_other() -> None:
    import bitrank_quant

    assert all(getattr(bitrank_quant, name) is not None for name in bitrank_quant.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = bitrank_quant.no_such_name
