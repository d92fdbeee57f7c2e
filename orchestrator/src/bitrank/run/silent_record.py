"""The record of the processes of a run after the first, which writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from bitrank_data import DataReport, TokenSplit
from bitrank_quant import Applied, UnplannedTensor, WeightMatrix
from bitrank_trainer import Evaluation, Processes, Progress, device_memory_mib, peak_memory_mib
from torch import nn

from bitrank.run.generations import Samples
from bitrank.run.record import NO_SAMPLES, Record


class SilentRecord(Record):
    """The record of the other ranks: takes part in collective operations and writes nothing."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def emit(self, event: Mapping[str, object]) -> None: ...

    def machine(self, device: str, dtype: torch.dtype, threads: int, import_mib: float) -> None: ...

    def data(self, report: DataReport) -> None: ...

    def requested_plan(self, plan: Mapping[str, Any]) -> None: ...

    def plan(
        self,
        bits: dict[str, str],
        ranks: dict[str, int],
        matrices: list[WeightMatrix],
        left: Sequence[UnplannedTensor] = (),
        parameters: int = 0,
        new_modules: Sequence[str] = (),
        *,
        quantizer: str = "rtn",
    ) -> None: ...

    def model(
        self, applied: dict[str, Applied], base: int, trained: Mapping[str, nn.Parameter], parameters: int
    ) -> None: ...

    def zero_shot(self, evaluate: Callable[[], Evaluation]) -> None:
        if not self._processes.broadcast(False):
            evaluate()

    def adapter(self, hook: Any) -> None: ...

    def ready(self) -> None: ...

    def trained(self, progress: Progress, epochs: float) -> None: ...

    def tested(self, final: Evaluation, split: TokenSplit, samples: Samples = NO_SAMPLES) -> None: ...

    def finish(self, ranks: dict[str, int], adapter_bytes: int, device: str) -> None:
        self._processes.gather((peak_memory_mib(), device_memory_mib(device)))


def open_record(folder: Path, processes: Processes) -> Record:
    """Open the record of the run in ``folder``; only the first of ``processes`` writes to it."""
    return Record(folder, processes) if processes.first else SilentRecord(processes)
