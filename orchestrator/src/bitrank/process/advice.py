"""Remedies for failures whose messages come from libraries or from the operating system.

Each entry of :data:`ADVICE` maps a pattern to a remedy. The pattern is searched for in the exception's text,
or in the end of the log of a process that was terminated: Metal's assertions abort without an exception. The
first matching entry applies.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass


@dataclass(frozen=True)
class Advice:
    """``pattern`` is searched for in a failure's text, ignoring case; ``remedy`` is shown to the user."""

    pattern: str
    remedy: str


_SMALLER = "--batch-size 4 or 2, shorter sequences (--set max_length=64), or fewer bits (--config B-Q4)"

ADVICE: dict[str, Advice] = {
    "mps tensor size": Advice(
        r"total bytes of NDArray > 2\*\*32|product of dimension sizes > 2\*\*31",
        "a tensor is over the 2³² bytes that Metal takes, in spite of the sizes counted before the run: give "
        "--batch-size 4 or 2, shorter sequences (--set max_length=64), --quant-backend none, or --set "
        "device=cpu",
    ),
    "mps memory": Advice(
        r"MPS backend out of memory",
        f"the passes were cut as far as they go: give {_SMALLER}; close other applications, which share this "
        "memory; PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 lifts the limit, at the risk that the whole system "
        "stalls",
    ),
    "mps watermark": Advice(
        r"invalid (low|high) watermark ratio",
        "PYTORCH_MPS_HIGH_WATERMARK_RATIO and PYTORCH_MPS_LOW_WATERMARK_RATIO disagree (low is 1.4 unless "
        "set): set low to no more than high, or unset both",
    ),
    "mps missing op": Advice(
        r"not currently (implemented|supported) (for|on) the MPS (device|backend)",
        "this operation is missing on MPS: set PYTORCH_ENABLE_MPS_FALLBACK=1 before torch is imported (the "
        "command bitrank does so unless it is set already; here it is off), or run with --set device=cpu",
    ),
    "mps float64": Advice(
        r"MPS framework doesn't support float64",
        "something computes in float64, which MPS lacks: run with --set device=cpu, and report which model "
        "this was",
    ),
    "mps bf16": Advice(
        r"MPS BFloat16 is only supported on MacOS 14",
        "this macOS has no bf16: run with --set dtype=fp16 or --set dtype=fp32",
    ),
    "gpu memory": Advice(
        r"(CUDA|HIP) (error: )?out of memory",
        f"the passes were cut as far as they go: give {_SMALLER}; see what else holds the memory with "
        "nvidia-smi or rocm-smi",
    ),
    "gpu kernels": Advice(
        r"no kernel image is available for execution|Torch not compiled with CUDA enabled"
        r"|CUDA driver version is insufficient",
        "this build of torch does not fit the GPU or its driver: update the driver, install the CUDA build "
        "with make install TORCH=cuda, or run with --set device=cpu",
    ),
    "bitsandbytes": Advice(
        r"bitsandbytes native library|CPU-only version of bitsandbytes|libbitsandbytes"
        r"|No module named 'bitsandbytes'"
        r"|No package metadata was found for.*bitsandbytes",
        "bitsandbytes does not work here: try --quant-backend auto (plain torch supports every format), "
        "cpu-int8, quanto-int4 or none; python -m bitsandbytes reports the missing parts, bitrank doctor the "
        "working backends",
    ),
    "quanto compiler": Advice(
        r"Error building extension 'quanto|Ninja is required to load C\+\+ extensions"
        r"|no acceptable C\+\+ compiler|xcrun: error",
        "quanto compiles its unpacking code at first use and could not: install a C++ compiler (apt-get "
        "install g++, or xcode-select --install) and pip install ninja, or take --quant-backend auto",
    ),
    "memory": Advice(
        r"DefaultCPUAllocator: (can't allocate memory|not enough memory)|std::bad_alloc|MemoryError",
        f"memory ran out: give {_SMALLER}, or --memory-limit; close other applications, run fewer at once "
        "(--jobs 1)",
    ),
}

_SIGNALS = {
    signal.SIGKILL: (
        "the system ended the process, most often because memory ran out: give --memory-limit "
        f"(such as 4GiB), {_SMALLER}, or --jobs 1"
    ),
    signal.SIGILL: (
        "the processor lacks an instruction that a library uses: run with BITRANK_KERNELS=0, "
        "and see bitrank doctor"
    ),
}


def advise(text: str) -> str | None:
    """Return the remedy for a failure with the message ``text``; None if no pattern matches."""
    return next(
        (
            advice.remedy
            for advice in ADVICE.values()
            if re.search(advice.pattern, text, re.IGNORECASE | re.DOTALL)
        ),
        None,
    )


def advise_signal(number: int, log: str) -> str | None:
    """Return the remedy for a process that signal ``number`` terminated after it wrote ``log``.

    A pattern that matches the log takes precedence over the signal's own remedy.
    """
    return advise(log) or _SIGNALS.get(signal.Signals(number))
