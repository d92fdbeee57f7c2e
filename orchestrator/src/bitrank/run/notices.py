"""Notices of a run: one sentence each, printed, logged, and stored as a tag of the run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TextIO

import torch
from bitrank_quant import Applied, UnplannedTensor, choose_backend, parse_format, rejected
from bitrank_trainer import OwnAttention

_LISTED = 3  # kinds of tensors that a notice lists
Emit = Callable[[Mapping[str, object]], None]
_CPU_INSTEAD = re.compile(
    r"operator '([^']+)' is not currently supported on the MPS backend and will fall back to run on the CPU"
)


def notice(kind: str, message: str) -> dict[str, object]:
    """The event of a notice with the text ``message`` and the tag ``kind``."""
    return {"event": "notice", "message": message, "tags": {kind: message[:500]}}


def rejected_backends(applied: Mapping[str, Applied], device: str, dtype: torch.dtype) -> str | None:
    """Formats that use another backend because the preferred one failed its trial on this machine.

    None when every format uses its preferred backend.
    """
    notes = []
    for text, backend in sorted({(done.format, done.backend) for done in applied.values()}):
        fmt = parse_format(text)
        if fmt.bits < 16 and choose_backend(fmt, device, dtype).name == backend:
            notes += [
                f"{text} uses {backend}: {name} fails here ({reason})"
                for name, reason in rejected(fmt, device, dtype).items()
            ]
    return "; ".join(notes) or None


def unfused_message(names: Sequence[str]) -> str:
    """The adapted matrices ``names``, at least one, that fused layers do not compute."""
    return (
        f"the adapters of {len(names)} matrices, such as {names[0]}, compute another formula than fused "
        "layers; they use PEFT's layers, which are slower"
    )


def left_out_share(left: Sequence[UnplannedTensor], parameters: int) -> float:
    """Share (0–1) of a model's ``parameters`` that no plan can quantize."""
    return sum(tensor.numbers for tensor in left) / parameters if left else 0.0


def left_out_message(left: Sequence[UnplannedTensor], parameters: int) -> str | None:
    """Share of a model's ``parameters`` that no plan can quantize, with reasons; None if there is none."""
    if not left:
        return None
    kinds: dict[str, str] = {}
    for tensor in left:
        kinds.setdefault(re.sub(r"\.\d+\.", ".*.", tensor.name), tensor.reason)
    listed = [f"{name} ({reason})" for name, reason in list(kinds.items())[:_LISTED]]
    more = f" and {len(kinds) - _LISTED} more" if len(kinds) > _LISTED else ""
    return (
        f"{left_out_share(left, parameters):.1%} of the weights stay in 16 bits under every plan and get no "
        f"adapter: {', '.join(listed)}{more}"
    )


@contextmanager
def report_mps_fallbacks(emit: Emit) -> Iterator[None]:
    """Emit notices for two kinds of warnings inside the block; the warnings are still logged.

    They are torch's warning that an operation falls back from MPS to the CPU (once per operation), and the
    trainer's warning that a model's own attention replaces the requested one.
    """
    plain, reported = warnings.showwarning, set[str]()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        match = _CPU_INSTEAD.search(str(message))
        if match and match[1] not in reported:
            reported.add(match[1])
            emit(
                notice(
                    "mps_fallback",
                    f"missing on MPS and computed on the CPU, which is slower: {', '.join(sorted(reported))}",
                )
            )
        if issubclass(category, OwnAttention):
            emit(notice("attention", str(message)))
        plain(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = plain
