"""Real messages of libraries and systems get their remedies; unknown ones get none."""

from __future__ import annotations

import re
import signal

import pytest
import torch
from bitrank.process.advice import ADVICE, advise, advise_signal
from bitrank_quant import OVERRIDES

MESSAGES = {
    "mps tensor size": (
        "/Library/Caches/com.apple.xbs/Sources/MetalPerformanceShaders/MPSCore/Types/MPSNDArray.mm:788: "
        "failed assertion `[MPSNDArray initWithDevice:descriptor:] Error: total bytes of NDArray > 2**32'"
    ),
    "mps memory": (
        "RuntimeError: MPS backend out of memory (MPS allocated: 5.50 GB, other allocations: 14.76 GB, max "
        "allowed: 20.40 GB). Tried to allocate 147.24 MB on private pool. Use "
        "PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit for memory allocations (may cause "
        "system failure)."
    ),
    "mps watermark": "RuntimeError: invalid low watermark ratio 1.4",
    "mps missing op": (
        "NotImplementedError: The operator 'aten::_index_put_impl_' is not currently implemented for the MPS "
        "device. If you want this op to be added in priority during the prototype phase of this feature, "
        "please comment on the issue. As a temporary fix, you can set the environment variable "
        "`PYTORCH_ENABLE_MPS_FALLBACK=1` to use the CPU as a fallback for this op."
    ),
    "mps float64": (
        "TypeError: Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
        "float64. Please use float32 instead."
    ),
    "mps bf16": "TypeError: MPS BFloat16 is only supported on MacOS 14 or newer",
    "gpu memory": (
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of "
        "79.15 GiB of which 3.06 MiB is free."
    ),
    "gpu kernels": "RuntimeError: CUDA error: no kernel image is available for execution on the device",
    "quanto compiler": "RuntimeError: Ninja is required to load C++ extensions",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_each_failure_gets_its_own_remedy(name: str) -> None:
    assert advise(MESSAGES[name]) == ADVICE[name].remedy


def test_failures_provoked_on_this_machine_get_their_remedies() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as memory:
        torch.empty(2**50)
    assert advise(f"{type(memory.value).__name__}: {memory.value}") == ADVICE["memory"].remedy
    absent = pytest.importorskip("bitsandbytes.cextension").ErrorHandlerMockBNBNativeLibrary

    with pytest.raises(RuntimeError) as native:
        absent("libbitsandbytes_cpu.so: cannot open shared object file").cquantize_blockwise_bf16_nf4()
    assert advise(str(native.value)) == ADVICE["bitsandbytes"].remedy
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError)) as cuda:
            torch.zeros(1, device="cuda")
        assert advise(str(cuda.value)) == ADVICE["gpu kernels"].remedy


def test_unknown_failure_gets_no_advice() -> None:
    assert advise("RuntimeError: mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)") is None


def test_log_takes_precedence_over_the_signal() -> None:
    assert advise_signal(signal.SIGABRT, MESSAGES["mps tensor size"]) == ADVICE["mps tensor size"].remedy
    assert "--memory-limit" in (advise_signal(signal.SIGKILL, "all went well so far") or "")
    assert advise_signal(signal.SIGTERM, "") is None


def test_every_advised_option_exists_on_the_command_line() -> None:
    """A remedy must not name an option that the command line lacks."""
    import re

    from bitrank.cli.main import _parser
    from bitrank.spec.make_spec import SETTABLE

    parser = _parser()
    known = parser._subparsers._group_actions[0].choices["matrix"].format_help()
    known += parser._subparsers._group_actions[0].choices["run"].format_help()
    for advice in ADVICE.values():
        assert all(
            option in known
            for option in re.findall(r"--[a-z-]+", advice.remedy)
            if option not in {"--install", "--set"}
        )
        assert all(key in SETTABLE for key in re.findall(r"--set (\w+)=", advice.remedy))


def test_backends_in_remedies_are_registered() -> None:
    remedies = [advice.remedy for advice in ADVICE.values()]
    options = [found for text in remedies for found in re.findall(r"--quant-backend ([\w-]+)", text)]
    others = re.findall(r"\b(?:cpu|cuda|quanto)-\w+", " ".join(remedies))
    assert options and others and {*options, *others} <= set(OVERRIDES)
