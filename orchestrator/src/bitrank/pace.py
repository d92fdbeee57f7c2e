"""One run on all cores, or one run a core: which trains faster here? Measured on the products of a small encoder layer.

``python -m bitrank.pace THREADS SECONDS`` is one of the measured processes; it prints layers a second.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil

_SECONDS = 2.0


def measure_pace() -> dict[str, str]:
    """Layers a second of one process with all cores, and of one process a core, and what to do about it."""
    cores = psutil.cpu_count(logical=False) or 1
    if cores == 1:
        return {"choice": "one core: one run at a time"}
    together, apart = sum(_paces([cores])), sum(_paces([1] * cores))
    choice = f"--jobs {cores} with --set threads=1" if apart > together else "--jobs 1 with all threads"
    return {
        f"one run on {cores} threads": f"{together:.0f} layers a second",
        f"{cores} runs on one thread each": f"{apart:.0f} layers a second ({apart / together:.2f} times)",
        "faster": f"{choice} (profile laptop fixes one thread a run, so that its numbers do not depend on --jobs)",
    }


def _paces(threads: list[int]) -> list[float]:
    environment = {**os.environ, "GOMP_SPINCOUNT": "20000"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "bitrank.pace", str(count), str(_SECONDS)], stdout=subprocess.PIPE, text=True, env=environment
        )
        for count in threads
    ]
    return [float(process.communicate()[0]) for process in started]


def layers_per_second(threads: int, seconds: float) -> float:
    """Forward and backward through the feed-forward half of a layer 384 wide, 800 tokens at a time, in bf16."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(threads)
    x_NI = torch.randn(800, 384, dtype=torch.bfloat16, requires_grad=True)
    up_OI, down_IO = torch.randn(1536, 384, dtype=torch.bfloat16), torch.randn(384, 1536, dtype=torch.bfloat16)

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
    print(layers_per_second(int(sys.argv[1]), float(sys.argv[2])))
