"""Report which code decodes low-bit weights on this machine."""

from __future__ import annotations

from bitrank_quant.kernels import built_kernels, rows, switched_off


def kernels_status() -> str:
    """One sentence: the code that decodes low-bit weights and runs row passes on this CPU, and why.

    Compiles the kernels if necessary.
    """
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
    why = rows.missing()
    between = "passes over rows as well" if why is None else f"passes over rows are plain torch's: {why}"
    return f"compiled kernels ({built.compiler}) decode low-bit weights, {threads}; {between}"
