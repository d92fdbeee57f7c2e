"""Record of a run: an event log that the parent process reads during training, and result files.

The training process never imports MLflow. It appends JSON lines to ``events.jsonl``; the orchestrator's
parent process follows that file, logs in batches and closes the run. So the memory figures contain training
alone, and a crash cannot leave a half-written store.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from bitrank_data import DataReport, TokenSplit, write_atomically
from bitrank_quant import Applied, UnplannedTensor, WeightMatrix
from bitrank_trainer import Evaluation, Processes, Progress, device_memory_mib, has_tcmalloc, peak_memory_mib
from torch import nn

from bitrank.process.events import open_events
from bitrank.process.hardware import hardware
from bitrank.process.libraries import LIBRARIES, OURS, installed_version
from bitrank.process.run_folder import seal
from bitrank.run.earlier_attempts import (
    digest,
    past_checkpoints,
    past_compute,
    past_peak,
    past_ranks,
    read_figures,
)
from bitrank.run.generations import Samples
from bitrank.run.notices import left_out_message, left_out_share, notice, rejected_backends

MIB = 1024**2
NO_SAMPLES = Samples()
# Keys of a plan file that a run's plan.json repeats: prediction, budget, size, and the cost of planning.
_PREDICTIONS = (
    "planner",
    "budget",
    "bytes",
    "predicted_added_loss",
    "proven_lower_bound",
    "proven_gap",
    "trainable",
    "init",
    "shapes",
    "planning_seconds",
    "planning_peak_mib",
)


class Record:
    """Writes events, plans, ranks over time, predictions and the result of a run to ``folder``."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        self._folder, self._processes = folder, processes
        self._result: dict[str, Any] = {}
        self._predictions: dict[str, Any] = {}
        self._events = open_events(folder / "events.jsonl")
        self._checkpoints = past_checkpoints(folder / "events.jsonl")
        self._ranks_over_time: dict[int, dict[str, int]] = past_ranks(folder / "events.jsonl")
        self._device, self._dtype = "cpu", torch.float32
        self._earlier_compute = past_compute(folder / "events.jsonl")
        self._device_peak = past_peak(folder / "events.jsonl", "device_mib")
        self._earlier_s = past_peak(folder / "events.jsonl", "total_s")  # of interrupted attempts

    @property
    def processes(self) -> Processes:
        """The processes that train this run together."""
        return self._processes

    def emit(self, event: Mapping[str, object]) -> None:
        """Append one event and flush it to disk."""
        if event["event"] == "ranks":
            self._ranks_over_time[event["step"]] = event["ranks"]  # type: ignore[index,assignment]
        # Sampled at every event: MPS reports the current allocation and no peak.
        self._device_peak = max(self._device_peak, device_memory_mib(self._device))
        live = {"peak_mib": peak_memory_mib(), "device_mib": self._device_peak, "total_s": self._total_s}
        self._events.write(json.dumps({**event, "time_ms": int(time.time() * 1000), "live": live}) + "\n")
        self._events.flush()
        # Events reach the disk before the checkpoint of the same step: after a power cut, a resumed run must
        # not have a checkpoint without the points of its curves.
        os.fsync(self._events.fileno())
        if event["event"] == "resumed":
            self._note_resumption(event["step"])  # type: ignore[arg-type]

    def _note_resumption(self, step: int) -> None:
        """Emit notices on what the attempt that continues at ``step`` does not share with the earlier one."""
        if step not in self._checkpoints:
            gap = f"events.jsonl ends before step {step}, where training continues: the curves have a gap"
            self.emit(notice("missing_events", gap))
        here = f"{_name(self._dtype)} on {self._device}"
        if self._earlier_compute not in (None, here):
            moved = (
                f"training computed in {self._earlier_compute} up to step {step}, and continues in {here}: "
                "the result is that of neither; give --set dtype= and --set device= to runs that may move"
            )
            self.emit(notice("changed_compute", moved))

    @property
    def _total_s(self) -> float:
        """Seconds of this process and of earlier ones of the run, each to its last event."""
        return self._earlier_s + time.time() - psutil.Process().create_time()

    def phase(self, name: str) -> None:
        self.emit({"event": "phase", "phase": name})

    def machine(self, device: str, dtype: torch.dtype, threads: int, import_mib: float) -> None:
        """Record the hardware, library versions, and the memory after all imports."""
        self._device, self._dtype = device, dtype
        self._result["mem/import_mib"] = import_mib
        tags = {f"version.{name}": installed_version(name) for name in (*OURS, *LIBRARIES)}
        tags |= {
            "device": device,
            "dtype": _name(dtype),
            "threads": str(threads),
            "hardware": hardware(device),
        }
        tags["allocator"] = "tcmalloc" if has_tcmalloc() else "system"
        self.emit({"event": "machine", "tags": tags})

    def data(self, report: DataReport) -> None:
        """Record the counts of excluded data, and a notice if there are any."""
        self._result |= {f"data/{name}": count for name, count in report.counts.items()}
        if report.notes:
            self.emit(notice("data", "; ".join(report.notes)))

    def notices(self, kind: str, messages: Sequence[str]) -> None:
        """Emit ``messages`` as one notice with the tag ``kind``; nothing if there are none."""
        if messages:
            self.emit(notice(kind, "; ".join(messages)))

    def requested_plan(self, plan: Mapping[str, Any]) -> None:
        """Record predictions and cost of the plan of a planned arm; :meth:`plan` adds them to
        ``plan.json``."""
        self._predictions = {key: plan[key] for key in _PREDICTIONS if key in plan}
        self._result |= {
            "time/plan_s": sum(plan["planning_seconds"].values()),
            "mem/plan_mib": plan["planning_peak_mib"],
            "plan/nats": plan["predicted_added_loss"],
        }

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
    ) -> None:
        """Write both plans to ``plan.json`` before they are applied.

        ``left`` are the tensors that no plan can name, of a model with ``parameters`` parameters;
        ``new_modules`` are the modules without weights in the model's files; ``quantizer`` chooses the codes.
        """
        plan = {
            **self._predictions,
            "precision": bits,
            "ranks": ranks,
            "quantizer": quantizer,
            "matrices": [asdict(matrix) for matrix in matrices],
            "left_in_16_bits": {tensor.name: asdict(tensor) for tensor in left},
            "left_in_16_bits_share": left_out_share(left, parameters),
            "new_modules": list(new_modules),
        }
        write_atomically(self._folder / "plan.json", json.dumps(plan, indent=1))
        formats = sorted(set(bits.values()))
        self.emit(
            {"event": "plan", "formats": formats, "adapted": len(ranks), "ranks": sorted(set(ranks.values()))}
        )
        if message := left_out_message(left, parameters):
            self._result["model/left_percent"] = 100 * left_out_share(left, parameters)
            self.emit(notice("left_in_16_bits", message))

    def model(
        self, applied: dict[str, Applied], base: int, trained: Mapping[str, nn.Parameter], parameters: int
    ) -> None:
        """Record the backend of each matrix, the ``base`` bytes of the model, and the trained parameters."""
        plan = json.loads((self._folder / "plan.json").read_text())
        plan["applied"] = {name: asdict(done) for name, done in applied.items()}
        write_atomically(self._folder / "plan.json", json.dumps(plan, indent=1))
        count = sum(p.numel() for p in trained.values())
        self._result |= {
            "model/mib": base / MIB,
            "model/bits": base * 8 / parameters,
            "lora/params": count,
            "lora/percent": 100 * count / parameters,
        }
        backends = sorted({f"{done.format}@{done.backend}" for done in applied.values()})
        self.emit({"event": "model", "tags": {"stored_as": ", ".join(backends)}})
        if message := rejected_backends(applied, self._device, self._dtype):
            self.emit(notice("fallback", message))

    def zero_shot(self, evaluate: Callable[[], Evaluation]) -> None:
        """Evaluate before training: the effect of quantization alone. A resumed run reuses the figures."""
        path = self._folder / "zero_shot.json"
        metrics = read_figures(path)
        if not self._processes.broadcast(metrics is not None):
            metrics = evaluate().metrics
            write_atomically(path, json.dumps({"metrics": metrics, "sha256": digest(metrics)}))
        self._result |= {f"zero/{name}": value for name, value in (metrics or {}).items()}

    def adapter(self, hook: Any) -> None:
        """Save the adapter of ``hook`` in PEFT's format (safetensors)."""
        place = self._folder / "adapter"
        shutil.rmtree(place, ignore_errors=True)  # PEFT reads an old README.md, which may be damaged
        hook.save(place)

    def ready(self) -> None:
        """Record the set-up time: from the start of the process, imports included, to a trainable model."""
        self._result["time/setup_s"] = time.time() - psutil.Process().create_time()

    def trained(self, progress: Progress, epochs: float) -> None:
        """Record the cost of training; ``epochs`` is how often ``progress`` passed through the training data.

        It is a fraction, and below one where training ended within the first pass.
        """
        self._result |= {
            "train/best_step": progress.best_step,
            "train/tokens": progress.tokens,
            "train/skipped_steps": progress.skipped,
            "speed/train_tok_s": progress.tokens / progress.seconds,
            "time/train_s": progress.seconds,
            "time/epoch_s": progress.seconds / epochs,
        }

    def tested(self, final: Evaluation, split: TokenSplit, samples: Samples = NO_SAMPLES) -> None:
        """Write the predictions of ``split`` and record the figures of its evaluation after training.

        The continuations of ``samples`` are written to ``continuations.json``.
        """
        if samples.continuations:
            rows = json.dumps(samples.continuations, indent=1, ensure_ascii=False)
            write_atomically(self._folder / "continuations.json", rows)
        write_predictions(final, split, self._folder / "predictions.parquet", samples.columns)
        figures = {**final.metrics, **samples.figures}
        self._result |= {f"eval/{name}": value for name, value in figures.items()}
        self._result |= {
            # Speed of generated tokens if the kind of task generates, else of evaluated ones.
            "speed/infer_tok_s": samples.tokens_per_second or final.tokens_per_second,
            "speed/eval_tok_s": final.tokens_per_second,
            "time/eval_s": final.seconds,
        }
        if samples.seconds is not None:
            self._result["time/generate_s"] = samples.seconds

    def finish(self, ranks: dict[str, int], adapter_bytes: int, device: str) -> None:
        """Write ranks and figures. ``result.json`` is written last and marks a complete run."""
        over_time = {str(step): values for step, values in sorted(self._ranks_over_time.items())}
        write_atomically(
            self._folder / "ranks.json", json.dumps({"final": ranks, "over_time": over_time}, indent=1)
        )
        self._result |= {
            "lora/rank": sum(ranks.values()),
            "lora/mib": adapter_bytes / MIB,
            "lora/rank_mean": sum(ranks.values()) / max(len(ranks), 1),
            **self._memory(device),
            "time/total_s": self._total_s,
        }
        self._close()

    def _memory(self, device: str) -> dict[str, float]:
        """Peak memory in MiB of the first process, over all attempts.

        With several processes also the sum of the peaks of all processes, of this attempt.
        """
        peak = max(peak_memory_mib(), past_peak(self._folder / "events.jsonl", "peak_mib"))
        here = {"mem/peak_mib": peak, "mem/device_mib": max(self._device_peak, device_memory_mib(device))}
        if self._processes.count == 1:
            return here
        peaks = self._processes.gather((peak, here["mem/device_mib"]))
        return {
            **here,
            "mem/sum_peak_mib": sum(p for p, _ in peaks),
            "mem/sum_device_mib": sum(d for _, d in peaks),
        }

    def _close(self) -> None:
        seal(self._folder, self._result)
        self.emit({"event": "done"})


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def write_predictions(
    final: Evaluation, split: TokenSplit, path: Path, more: Mapping[str, Sequence[Any]] | None = None
) -> None:
    """Write one row per sequence: example id, the objective's columns, and ``more`` columns by sequence.

    Loss is in nats, summed over the sequence.
    """
    columns: dict[str, list[Any]] = {key: [row[key] for row in final.rows] for key in final.rows[0]}
    indices = [int(index) for index in columns.pop("index")]
    columns["id"] = [split.ids[index] for index in indices]
    for name, values in (more or {}).items():
        columns[name] = [values[index] for index in indices]
    pq.write_table(pa.table(columns), path)
