"""Report which code decodes low-bit weights on this machine."""

from __future__ import annotations

import torch

from bitrank_quant.kernels import built_kernels, device, quantize, rows, switched_off


def kernels_status() -> str:
    """One sentence: the code that decodes weights, runs row passes and chooses codes here, and why.

    Compiles the kernels if necessary.
    """
    gpu = _gpu()
    return f"{_cpu()}; {gpu}" if gpu else _cpu()


def _gpu() -> str:
    if not torch.cuda.is_available():
        return ""
    why = device.problem()
    return "Triton kernels decode on the GPU" if why is None else f"plain torch decodes on the GPU: {why}"


def _cpu() -> str:
    if switched_off():
        return "plain torch decodes low-bit weights: BITRANK_KERNELS=0"
    built = built_kernels()
    if isinstance(built, str):
        return f"plain torch decodes low-bit weights, several times slower: {built}"
    threads = (
        f"on the threads of torch ({built.openmp})"
        if built.openmp
        else "on one thread: torch has no libgomp that this compiler can use"
    )
    others = {"computation between products": rows.missing(), "the choice of codes": quantize.missing()}
    compiled = [name for name, why in others.items() if why is None]
    absent = [f"{name} is plain torch's: {why}" for name, why in others.items() if why is not None]
    more = [f"compiled as well: {' and '.join(compiled)}"] if compiled else []
    rest = "; ".join([*more, *absent])
    return f"compiled kernels ({built.compiler}) decode low-bit weights, {threads}; {rest}"
