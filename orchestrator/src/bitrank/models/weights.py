"""Load weights from safetensors files into an empty model, one module at a time.

``from_pretrained`` holds the whole model in 16 bits before anything can be quantized. Here the model is built
without weights, the plan is made from names and shapes, and each matrix is read, quantized and freed before
the next one is read. transformers decides which tensor becomes which parameter
(:mod:`bitrank.models.checkpoint`), and its loading function converts and assigns it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from bitrank_trainer import release_memory
from torch import Tensor, nn
from transformers.core_model_loading import convert_and_load_state_dict_in_model

from bitrank.models.checkpoint import Checkpoint, one_after_another

TiedNames = dict[str, tuple[nn.Module, str]]

# Bytes read between two calls of release_memory.
_SWEEP = 2**24


class Filler:
    """Load the weights of a model on the ``meta`` device.

    A parameter that several modules share stays shared. Parameters in ``redrawn`` are drawn although a file
    has them. ``rows`` maps a module to the order of its rows (a classifier whose classes are in another
    order).
    """

    def __init__(
        self,
        model: Any,
        checkpoint: Checkpoint,
        device: str,
        seed: int,
        redrawn: Iterable[str] = (),
        rows: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self._model, self._checkpoint, self._device, self._seed = model, checkpoint, device, seed
        self._drawn = {*checkpoint.missing, *checkpoint.mismatched, *redrawn}
        self._rows = rows or {}
        self._loading = replace(checkpoint.loading, device_map={"": device})
        self._unswept = 0
        self._tied = _tied_names(model)
        self._names = {name: list(tied) for name, tied in self._tied.items()}

    @property
    def new_parameters(self) -> set[str]:
        """The parameters that are drawn from the seed."""
        return set(self._drawn)

    def stored_name(self, parameter: str) -> str:
        """Return the name under which the files store ``parameter``, which may be that of a tied one."""
        return next(name for name in self._names[parameter] if name in self._checkpoint.groups)

    def fill(self, name: str) -> None:
        """Load the parameters of module ``name`` alone, if they are not loaded yet."""
        if self._unswept > _SWEEP:
            release_memory()
            self._unswept = 0
        for attribute, parameter in list(self._model.get_submodule(name).named_parameters(recurse=False)):
            tied = self._tied.get(_full(name, attribute))
            if parameter.is_meta and tied:
                self._read(tied)

    def rest(self) -> None:
        """Load all remaining parameters; those in no file are drawn by the model's own rule from the seed."""
        for name, _ in list(self._model.named_modules()):
            self.fill(name)
        self._read_buffers()
        self._draw()
        self._model._weight_conversions = [
            rule for rule in self._loading.weight_mapping or [] if rule.was_used()
        ]
        self._model.to(self._device)
        release_memory()

    def _read(self, tied: TiedNames) -> None:
        """Load the parameter of ``tied`` by its stored name, and all parameters cut from the same tensors."""
        stored = [name for name in tied if name in self._checkpoint.groups and name not in self._drawn]
        if not stored:
            return
        for name in self._load(stored[0]):
            filled = self._model.get_parameter_or_buffer(name)
            self._reorder(name, filled)
            self._unswept += filled.nbytes
            # The references are dropped at once, so that replacing the module by a quantized one frees its
            # 16-bit weights.
            shared = self._tied.pop(name, {})
            for other, (module, attribute) in shared.items():
                self._tied.pop(other, None)
                setattr(module, attribute, filled)

    def _load(self, name: str) -> list[str]:
        """Convert and assign the tensors of parameter ``name``; return all parameters made from them."""
        groups = self._checkpoint.groups
        keys = set(groups[name])
        targets = [other for other, parts in groups.items() if not keys.isdisjoint(parts)]
        view = _View(self._model, targets)
        tensors = {key: self._checkpoint.tensors[key] for key in keys}
        with one_after_another():
            info, _ = convert_and_load_state_dict_in_model(view, tensors, self._loading)
        if info.missing_keys or info.conversion_errors:
            raise RuntimeError(
                f"{sorted(info.missing_keys)} could be matched but not loaded: {info.conversion_errors}"
            )
        return targets

    def _read_buffers(self) -> None:
        buffers = dict(self._model.named_buffers())
        for name in [name for name in self._checkpoint.groups if name in buffers]:
            self._load(name)

    def _reorder(self, parameter: str, filled: Tensor) -> None:
        order = self._rows.get(parameter.rpartition(".")[0])
        if order is not None:
            filled.data = filled.data[list(order)]

    def _draw(self) -> None:
        """Draw parameters as ``from_pretrained`` draws missing ones: by the model's rule, in module order."""
        new = {name.rpartition(".")[0] for name in self._drawn}
        for name, module in self._model.named_modules():
            # Some models draw a layer when they visit the module around it. Loaded parameters are skipped.
            around = name == "" or any(f"{part}.".startswith(f"{name}.") for part in new)
            module._is_hf_initialized = not (new and around)
        for name in self._drawn:
            owner = self._model.get_submodule(name.rpartition(".")[0])
            empty = getattr(owner, name.rpartition(".")[2])
            if empty.is_meta:
                drawn = nn.Parameter(
                    torch.empty_like(empty, device=self._device), requires_grad=empty.requires_grad
                )
                setattr(owner, name.rpartition(".")[2], drawn)
        torch.manual_seed(self._seed)
        self._model.initialize_weights()


def _full(module: str, attribute: str) -> str:
    return f"{module}.{attribute}" if module else attribute


def _tied_names(model: nn.Module) -> dict[str, TiedNames]:
    """Return for each parameter name all names that share the parameter, with module and attribute."""
    by_identity: dict[int, TiedNames] = {}
    for name, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            by_identity.setdefault(id(parameter), {})[_full(name, attribute)] = (module, attribute)
    return {name: tied for tied in by_identity.values() for name in tied}


class _View:
    """A view of a model for transformers' loading function, limited to the parameters ``names``.

    The function lists the whole model's state at each call. That is slow for many calls, and quantized
    modules of other libraries encode their state whenever it is listed.
    """

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        self._model, self._names = model, names
        self.base_model_prefix, self.config = model.base_model_prefix, model.config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the parameters and buffers by name."""
        return {name: self._model.get_parameter_or_buffer(name) for name in self._names}

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Return no buffer, because none is moved between devices here."""
        return iter(())
