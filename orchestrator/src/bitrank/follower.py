"""One writer: of a run's several processes the first keeps the record, and the others a record that stays silent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from bitrank_data import DataReport, TokenSplit
from bitrank_quant import Applied, LeftOut, WeightMatrix
from bitrank_trainer import Evaluation, Processes, Progress, device_memory_mib, peak_memory_mib
from torch import nn

from bitrank.record import Record


class Follower(Record):
    """The record of a process that is not the run's first: it does what all must do together, and writes nothing."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def emit(self, event: Mapping[str, object]) -> None: ...

    def machine(self, device: str, dtype: torch.dtype, threads: int, import_mib: float) -> None: ...

    def data(self, report: DataReport) -> None: ...

    def plan(
        self,
        bits: dict[str, str],
        ranks: dict[str, int],
        matrices: list[WeightMatrix],
        left: Sequence[LeftOut] = (),
        parameters: int = 0,
        new_modules: Sequence[str] = (),
    ) -> None: ...

    def model(self, applied: dict[str, Applied], base: int, trained: Mapping[str, nn.Parameter], parameters: int) -> None: ...

    def zero_shot(self, judge: Callable[[], Evaluation]) -> None:
        if not self._processes.told(False):
            judge()

    def adapter(self, hook: Any) -> None: ...

    def samples(self, rows: list[dict[str, str]]) -> None: ...

    def ready(self) -> None: ...

    def finish(
        self, final: Evaluation, split: TokenSplit, progress: Progress, ranks: dict[str, int], held: int, device: str,
        texts: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._processes.gather((peak_memory_mib(), device_memory_mib(device)))


def open_record(folder: Path, processes: Processes) -> Record:
    """The record of this process of the run in ``folder``."""
    return Record(folder, processes) if processes.first else Follower(processes)
