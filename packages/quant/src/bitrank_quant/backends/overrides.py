"""Names of ``--quant-backend`` and their meaning. Imports no torch: a mistyped name is refused at once."""

from __future__ import annotations

from dataclasses import dataclass

_TORCH = "torch"  # name of the reference backend


@dataclass(frozen=True)
class Override:
    """One ``--quant-backend``: the format that replaces every low-bit one of a plan, who serves it, and
    where.
    """

    format: str | None
    backend: str | None
    device: str | None
    about: str = ""


OVERRIDES: dict[str, Override] = {
    "auto": Override(None, None, None, "the plan's formats, each in the first backend that serves it"),
    "cuda-4bit": Override("nf4-dq", "bitsandbytes", "cuda", "NF4 by bitsandbytes on CUDA"),
    "cuda-8bit": Override("llm-int8", "bitsandbytes", "cuda", "LLM.int8() by bitsandbytes on CUDA"),
    "cpu-4bit": Override("nf4-dq", "bitsandbytes", "cpu", "NF4 by bitsandbytes on a CPU"),
    "cpu-int8": Override("int8", _TORCH, "cpu", "int8 rows in plain torch on a CPU"),
    "quanto-int4": Override("int4-g64", "quanto", None, "affine 4-bit groups by quanto"),
    "quanto-int8": Override("int8", "quanto", None, "int8 rows by quanto"),
    "none": Override("bf16", _TORCH, None, "nothing is quantized"),
}
