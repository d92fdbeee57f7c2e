"""Gradients of matrices and principal components of their inputs, for starts and ranks of adapters.

Gathered once per model and task and cached, matrix by matrix: the sweep and the calibration sequences are
those of the Fisher information (:mod:`~bitrank.sensitivity.measure`). They are a fixed sample of the run's
training data, the same for all seeds. A head without stored weights is fitted first.
"""

from __future__ import annotations

import hashlib
import json
import time
from functools import partial
from pathlib import Path

from bitrank_data import build_once, cache_dir
from bitrank_quant.sensitivity import LayerSample, Moments, Replay, measure_moments
from bitrank_trainer import choose_device, release_memory
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bitrank.errors import UserError
from bitrank.sensitivity.cache_key import key_parts
from bitrank.sensitivity.calibration import calibration, calibration_task, one_thread_per_operation
from bitrank.sensitivity.measure import real_positions
from bitrank.spec.inits import COMPONENTS
from bitrank.spec.inputs import check_inputs, source_of
from bitrank.spec.provenance import code_hash
from bitrank.spec.run_spec import RunSpec

_INDEX = "index.json"


def start_data_place(spec: RunSpec) -> Path:
    """The cache folder of the data: a hash of the model, the task's text, the settings that change a measured
    number, and the code that gathers.
    """
    source = source_of(spec)
    code = code_hash("bitrank.sensitivity.start_data")
    key = hashlib.sha256("\0".join((*key_parts(spec, source), str(COMPONENTS), code)).encode())
    return cache_dir() / "starts" / f"{Path(spec.model).name}-{source.name}-{key.hexdigest()[:16]}"


def gather_start_data(spec: RunSpec) -> Path:
    """The folder of the data for the model and task of ``spec``; gathered if the cache lacks them.

    The whole model is in memory in 16 bits meanwhile, with the gradients of one block. Raises
    :class:`UserError` if the task has fewer than two training examples, and the quant package's error if a
    gradient is not finite.
    """
    calibration_task(spec)

    def build(folder: Path) -> None:
        _gather(spec, folder)
        check_inputs(spec)  # a file that changed meanwhile may have been read in two states

    return build_once(start_data_place(spec), build)


def _gather(spec: RunSpec, folder: Path) -> None:
    started = time.monotonic()
    importance: dict[str, float] = {}
    files: dict[str, str] = {}

    def keep(name: str, moments: Moments, sample: object) -> None:
        if name not in adaptable:
            return
        assert isinstance(sample, LayerSample), f"{name} is no linear matrix"
        components = sample.inputs.components
        files[name], importance[name] = f"{len(files)}.safetensors", moments.importance
        tensors = {
            "gradient": sample.gradient_OI.float(),
            "directions": components.directions_KI[:COMPONENTS],
            "shares": components.shares_K[:COMPONENTS],
        }
        save_file({key: part.cpu().clone() for key, part in tensors.items()}, folder / files[name])

    device = choose_device(spec.device)
    with one_thread_per_operation(device):
        ready = calibration(spec)
        replay = Replay(ready.model, ready.many, ready.forward, real=partial(real_positions, device=device))
        adaptable = {matrix.name for matrix in ready.matrices if matrix.adaptable}
        # Blocks of an encoder-decoder are no chain: their gradients come through the embeddings.
        one_stack = len({matrix.stack for matrix in ready.matrices if matrix.adaptable}) == 1
        measured = [m for m in ready.matrices if not one_stack or m.name in adaptable]
        measure_moments(replay, measured, lambda _: release_memory(), keep)
    seconds = time.monotonic() - started
    (folder / _INDEX).write_text(json.dumps({"files": files, "importance": importance, "seconds": seconds}))


class StartData:
    """The data in a folder of :func:`gather_start_data`, read at first use.

    ``importance`` maps each matrix of the blocks to mean |W ∘ ∂loss/∂W|. ``seconds`` is the time that
    gathering took.
    """

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / _INDEX).read_text())
        self._folder = folder
        self._files: dict[str, str] = index["files"]
        self.importance: dict[str, float] = index["importance"]
        self.seconds: float = index["seconds"]

    def gradient(self, name: str) -> Tensor:
        """The gradient (O, I) of the mean loss by matrix ``name``, fp32."""
        return self._tensor(name, "gradient")

    def directions(self, name: str) -> Tensor:
        """The principal components (K, I) of the inputs of ``name``, of length 1, largest variance first."""
        return self._tensor(name, "directions")

    def shares(self, name: str) -> Tensor:
        """The shares (K,) of the principal components of the inputs of ``name`` in their variance."""
        return self._tensor(name, "shares")

    def _tensor(self, name: str, key: str) -> Tensor:
        if name not in self._files:
            raise UserError(
                f"no gradient of {name} is known: it is not in the transformer blocks of this model; give "
                "init=default"
            )
        with safe_open(self._folder / self._files[name], framework="pt") as tensors:
            found: Tensor = tensors.get_tensor(key)
        return found
