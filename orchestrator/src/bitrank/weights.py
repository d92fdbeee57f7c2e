"""Weights from safetensors files into a model that has none yet, one module at a time.

``from_pretrained`` holds the whole model in 16 bits before anything can be quantized. Here the model is built without weights,
the plan is made from names and shapes, and each matrix is read, quantized and forgotten before the next one is read. Names are
matched as transformers does: with or without the prefix of the base model, and with the old names of LayerNorm's weights.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitrank_trainer import release_memory
from safetensors import safe_open
from torch import Tensor, nn

_SWEEP = 2**24  # bytes read between two times that freed memory is handed back
_PART = 2**20  # numbers read at a time


@dataclass(frozen=True)
class Source:
    """Where the tensors of one model lie: parameter name → (file, key); and the modules that no file has, in module order."""

    places: dict[str, tuple[Path, str]]
    fresh: list[str]

    def dtype_of(self, parameter: str) -> torch.dtype:
        """The dtype in which a file holds ``parameter``."""
        path, key = self.places[parameter]
        with safe_open(path, framework="pt") as file:
            dtype: torch.dtype = file.get_slice(key)[:0].dtype
        return dtype


class Filler:
    """Gives a model on the ``meta`` device its weights. A parameter that several modules share stays shared."""

    def __init__(self, model: nn.Module, source: Source, device: str, dtype: torch.dtype, seed: int) -> None:
        self._model, self._source, self._device, self._dtype, self._seed = model, source, device, dtype, seed
        self._unswept = 0
        self._owners: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for attribute, parameter in module.named_parameters(recurse=False):
                self._owners.setdefault(id(parameter), []).append((module, attribute))

    def fill(self, name: str) -> None:
        """Read the parameters of module ``name`` alone, if it has none yet."""
        if self._unswept > _SWEEP:
            release_memory()
            self._unswept = 0
        module = self._model.get_submodule(name)
        for attribute, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                self._put(parameter, self._read(f"{name}.{attribute}" if name else attribute))

    def rest(self) -> None:
        """Fill all that is still empty; modules that no file has are drawn as their model draws them, from the seed."""
        for name, _ in list(self._model.named_modules()):
            if not any(name == fresh or name.startswith(f"{fresh}.") for fresh in self._source.fresh):
                self.fill(name)
        torch.manual_seed(self._seed)
        for name in self._source.fresh:
            module = self._model.get_submodule(name)
            module.to_empty(device=self._device)
            self._model._init_weights(module)  # type: ignore[operator]
        self._model.to(self._device)
        release_memory()

    def _put(self, empty: nn.Parameter, tensor: Tensor) -> None:
        self._unswept += tensor.nbytes
        filled = nn.Parameter(tensor, requires_grad=empty.requires_grad)
        # Forgotten at once: a module that is replaced by a quantized one must take its 16-bit weights with it.
        for module, attribute in self._owners.pop(id(empty)):
            if getattr(module, attribute) is empty:
                setattr(module, attribute, filled)

    def _read(self, parameter: str) -> Tensor:
        """A large matrix a few rows at a time: what is read is mapped, and would lie beside its copy until the file is closed."""
        path, key = self._source.places[parameter]
        with safe_open(path, framework="pt") as file:
            shape = file.get_slice(key).get_shape()
            if math.prod(shape) <= _PART:
                tensor: Tensor = file.get_tensor(key)
                return tensor.to(self._device, self._dtype, copy=True)
        whole = torch.empty(shape, dtype=self._dtype, device=self._device)
        rows = max(1, _PART // math.prod(shape[1:]))
        for start in range(0, shape[0], rows):
            # Opened anew each time: pages of an open file would count as this process's memory.
            with safe_open(path, framework="pt") as file:
                whole[start : start + rows] = file.get_slice(key)[start : start + rows]
        return whole


def find_source(model: Any, folder: Path) -> Source | None:
    """Where the weights of ``model`` lie in ``folder``; None when they are not stored under names that match one to one."""
    keys = dict(_keys(folder))
    places, missing = {}, []
    shared = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in shared.items():
        key = next((candidate for candidate in _names(name, model.base_model_prefix) if candidate in keys), None)
        if key is not None:
            places[name] = (keys[key], key)
        else:
            missing.append((name, parameter))
    found = {id(shared[name]) for name in places}
    fresh = sorted({name.rpartition(".")[0] for name, parameter in missing if id(parameter) not in found})
    if any(re.search(r"\.\d+\.|embed", name) for name in fresh):
        return None  # parts of the body itself are missing: another naming than transformers' own
    for name, parameter in missing:  # a tied head has no key of its own
        twin = next((other for other in places if shared[other] is parameter), None)
        if twin is not None:
            places[name] = places[twin]
    order = [name for name, _ in model.named_modules() if name in fresh]
    return Source(places, order)


def _keys(folder: Path) -> Iterator[tuple[str, Path]]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        yield from ((key, folder / file) for key, file in json.loads(index.read_text())["weight_map"].items())
    elif (folder / "model.safetensors").is_file():
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            yield from ((key, folder / "model.safetensors") for key in file.keys())  # noqa: SIM118 - no dictionary


def _names(parameter: str, prefix: str) -> list[str]:
    """The keys under which ``parameter`` may be stored."""
    names = [parameter, parameter.removeprefix(f"{prefix}."), f"{prefix}.{parameter}"]
    old = [name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta") for name in names]
    return names + old
