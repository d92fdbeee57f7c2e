"""Measure whether one run on all cores or one run per core trains faster.

The measured work is the matrix products of a small encoder layer, in the dtype that a run on this machine
uses. ``python -m bitrank.doctor.parallelism THREADS SECONDS DTYPE`` runs one of the measured processes and
prints layers per second.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from bitrank.process.cores import usable_cores

_SECONDS = 2.0


def measure_pace() -> dict[str, str]:
    """Measure layers per second of one process on all cores and of one process per core.

    The last entry is the recommended setting.
    """
    from bitrank_trainer import choose_dtype

    cores = usable_cores()
    if cores == 1:
        return {"choice": "one core: one run at a time"}
    dtype = choose_dtype("cpu")
    try:
        together, apart = sum(_paces([cores], dtype)), sum(_paces([1] * cores, dtype))
    except ValueError:
        return {"choice": "not measured: a process ended early, perhaps for lack of memory"}
    choice = f"--jobs {cores} with --set threads=1" if apart > together else "--jobs 1 with all threads"
    return {
        f"one run on {cores} threads": f"{together:.0f} layers a second in {dtype}",
        f"{cores} runs on one thread each": (
            f"{apart:.0f} layers a second in {dtype} ({apart / together:.2f} times)"
        ),
        "faster": (
            f"{choice} (profile laptop fixes one thread a run, so that its numbers do not depend on --jobs)"
        ),
    }


def _paces(threads: list[int], dtype: str) -> list[float]:
    environment = {**os.environ, "GOMP_SPINCOUNT": "20000"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "bitrank.doctor.parallelism", str(count), str(_SECONDS), dtype],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for count in threads
    ]
    printed = [process.communicate()[0] for process in started]  # waits for all, also if one has failed
    return [float(text) for text in printed]


def layers_per_second(threads: int, seconds: float, dtype: str) -> float:
    """Return forward and backward passes per second of a layer's feed-forward half.

    The layer is 384 wide and gets 800 tokens at a time in ``dtype`` (``bf16`` or ``fp32``). The dtype has to
    be the one of real runs: without bf16 instructions a bf16 product is a hundred times slower, and runs use
    fp32 there.
    """
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(threads)
    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    generator = torch.Generator().manual_seed(0)
    x_NI = torch.randn(800, 384, dtype=kind, generator=generator).requires_grad_()
    up_OI = torch.randn(1536, 384, dtype=kind, generator=generator)
    down_IO = torch.randn(384, 1536, dtype=kind, generator=generator)

    def layer() -> None:
        F.layer_norm(F.gelu(x_NI @ up_OI.T) @ down_IO.T, (384,)).sum().backward()

    for _ in range(3):
        layer()
    passes, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        layer()
        passes += 1
    return passes / (time.perf_counter() - started)


if __name__ == "__main__":
    print(layers_per_second(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]))
