"""Second moments of the inputs of every matrix, for quantizers: gathered once per model and task, then
cached.

The passes are forward only and run on the unquantized model, so one cache serves all formats, plans and
quantizers. Inputs are those of the original model, not of one whose earlier blocks are quantized already. The
file is read matrix by matrix.
"""

from __future__ import annotations

import hashlib
import json
import time
from functools import partial
from pathlib import Path

import torch
from bitrank_data import TokenisedTask, build_once, cache_dir
from bitrank_quant import InputMoments
from bitrank_quant.sensitivity import input_moments
from bitrank_trainer import choose_device
from safetensors import safe_open
from safetensors.torch import save_file

from bitrank.errors import UserError
from bitrank.sensitivity.cache_key import key_parts
from bitrank.sensitivity.calibration import (
    calibration_batches,
    calibration_task,
    measured_model,
    one_thread_per_operation,
)
from bitrank.sensitivity.fit_head import logits_and_labels
from bitrank.sensitivity.measure import real_positions
from bitrank.spec.inputs import check_inputs, source_of
from bitrank.spec.provenance import code_hash
from bitrank.spec.run_spec import RunSpec

# Training tokens whose inputs are averaged. GPTQ inverts moments of a few thousand inputs, which need at
# least as many positions.
TOKENS = 6144
_INDEX = "index.json"


def moments_place(spec: RunSpec) -> Path:
    """The cache folder of the moments: a hash of the model, the task's text, the settings that change a
    measured number, and the code that gathers.
    """
    source = source_of(spec)
    code = code_hash("bitrank.sensitivity.input_moments")
    key = hashlib.sha256("\0".join((*key_parts(spec, source), str(TOKENS), code)).encode())
    return cache_dir() / "inputs" / f"{Path(spec.model).name}-{source.name}-{key.hexdigest()[:16]}"


def gather(spec: RunSpec) -> Path:
    """The folder of the moments for the model and task of ``spec``; gathered if the cache lacks them.

    The whole model is in memory in 16 bits meanwhile. Raises :class:`UserError` if the task has fewer than
    two training examples, and the quant package's error if inputs are not finite.
    """

    def build(folder: Path) -> None:
        _gather(spec, folder)
        check_inputs(spec)  # a file that changed meanwhile may have been read in two states

    return build_once(moments_place(spec), build)


def _gather(spec: RunSpec, folder: Path) -> None:
    started = time.monotonic()
    task = calibration_task(spec)
    device = choose_device(spec.device)
    with one_thread_per_operation(device):
        opened = measured_model(spec, task)
        passes = input_moments(
            opened.model,
            calibration_batches(task, _sequences(task)),
            logits_and_labels(spec.kind, device),
            opened.matrices,
            partial(real_positions, device=device),
        )
        files: dict[str, tuple[str, str]] = {}
        for number, found in enumerate(passes):
            tensors, keys = _without_copies(found)
            save_file(tensors, folder / f"{number}.safetensors")
            files |= {name: (f"{number}.safetensors", key) for name, key in keys.items()}
        # An embedding with inputs is one whose weight a head shares.
        tables = [m.name for m in opened.matrices if m.role == "embedding" and m.name not in files]
    seconds = time.monotonic() - started
    (folder / _INDEX).write_text(json.dumps({"matrices": files, "tables": tables, "seconds": seconds}))


def _sequences(task: TokenisedTask) -> int:
    """Number of training sequences with about :data:`TOKENS` tokens; at most half of them."""
    train = task.splits["train"]
    mean = max(1.0, float(train.lengths_N.mean()))
    return max(1, min(len(train) // 2, round(TOKENS / mean)))


def _without_copies(found: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Moments on the CPU by key, and the key of each matrix: neighbours with the same inputs share one."""
    tensors: dict[str, torch.Tensor] = {}
    keys: dict[str, str] = {}
    last = ""
    for name, moments_II in found.items():
        if not last or not torch.equal(moments_II, found[last]):
            last = name
            tensors[name] = moments_II.cpu().contiguous()
        keys[name] = last
    return tensors, keys


class StoredMoments:
    """The moments in a folder of :func:`gather`, read at first use.

    ``seconds`` is the time that gathering took.
    """

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / _INDEX).read_text())
        self._folder = folder
        self._files: dict[str, list[str]] = index["matrices"]
        self._tables = frozenset(index["tables"])
        self.seconds: float = index["seconds"]

    def of(self, name: str, columns: int) -> InputMoments:
        """The moments of matrix ``name`` with ``columns`` inputs.

        The rows of an embedding are looked up, so its columns all have the same weight. Raises
        :class:`UserError` for a layer that the calibration data do not reach.
        """
        if name in self._tables:
            return InputMoments(torch.ones(columns))
        if name not in self._files:
            raise UserError(
                f"no input of {name} is known: the calibration data do not reach it; give data that do, or "
                "quantizer=rtn, which needs none"
            )
        file, key = self._files[name]
        with safe_open(self._folder / file, framework="pt") as tensors:
            return InputMoments(tensors.get_tensor(key))
