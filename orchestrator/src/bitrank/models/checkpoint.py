"""Match a checkpoint's tensors with a model's parameters before any weight is read.

A plan is made from names and shapes, so three facts are needed before loading: which parameters are in no
file, which have another shape, and which of two tied parameters the files store. ``from_pretrained`` reports
them only afterwards. This module runs transformers' own loading function once over tensors without data (on
the ``meta`` device), with transformers' choice of files, renaming, conversion and shape checks. The result is
kept, and :class:`~bitrank.models.weights.Filler` reads the same tensors later.
"""

from __future__ import annotations

import copy
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    dot_natural_key,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils.loading_report import LoadStateDictInfo

from bitrank.errors import UserError
from bitrank.models.quantized_checkpoints import refuse_quantized, refuse_quantized_config
from bitrank.models.stored_tensors import StoredTensor, stored_tensors, weight_files


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a model's files, and the parameters that they become.

    ``groups`` maps a parameter (or buffer) to the keys it is made of; parameters that are cut from one stored
    tensor share its key. ``missing`` parameters are in no file; ``mismatched`` ones have another shape there
    (file's, model's). ``unused`` are keys that the model has no parameter for. ``untied`` are parameters that
    the config ties to another one, but that the files store with other values; ``tied_missing`` are the
    others that the config ties and :meth:`tie` may overwrite. ``loading`` is the configuration of
    transformers' loading function. It is kept, because its rules for this model record the keys that they
    matched.
    """

    files: list[Path]
    tensors: dict[str, StoredTensor]
    groups: dict[str, list[str]]
    missing: set[str]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    unused: list[str]
    untied: set[str]
    tied_missing: set[str]
    loading: LoadStateDictConfig

    def tie(self, model: Any) -> None:
        """Tie the parameters of ``model`` as transformers does after loading.

        A tie that the files contradict is dropped.
        """
        for name in self.untied:
            model.all_tied_weights_keys.pop(name, None)
        if self.untied:
            model.config.tie_word_embeddings = False  # otherwise a later tie_weights() ties them again
        model.tie_weights(missing_keys=set(self.tied_missing), recompute_mapping=False)

    def dtype_of(self, parameter: str) -> torch.dtype:
        """Return the dtype in which a file stores ``parameter``."""
        return self.tensors[self.groups[parameter][0]].dtype


def read_checkpoint(model: Any, folder: Path, dtype: torch.dtype) -> Checkpoint:
    """Match the files in ``folder`` with ``model``, whose weights are not changed.

    The weights may be on the ``meta`` device. Raises :class:`UserError` for weights that are stored as codes,
    and for a conversion that fails.
    """
    refuse_quantized_config(folder, model.config)
    files = weight_files(folder, model.config)
    tensors = dict(stored_tensors(files))
    loading = LoadStateDictConfig(
        device_map={"": "meta"},
        dtype=dtype,
        dtype_plan=model._get_dtype_plan(dtype),
        weight_mapping=get_model_conversion_mapping(model),
    )
    info = _try(model, tensors, loading)
    refuse_quantized(folder, info.unexpected_keys, {key: tensor.dtype for key, tensor in tensors.items()})
    if info.conversion_errors:
        name, reason = next(iter(info.conversion_errors.items()))
        last = reason.strip().splitlines()[-1]
        raise UserError(f"{folder}: transformers cannot convert the stored weights of {name}: {last}")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    absent = info.missing_keys & parameters.keys()
    mismatched = {name: (tuple(stored), tuple(expected)) for name, stored, expected in info.mismatched_keys}
    groups = _groups(model, tensors, loading)
    untied, tied_missing = _ties(model, groups, tensors, absent | mismatched.keys())
    tied = _also_tied(model.all_tied_weights_keys, parameters.keys() - absent - mismatched.keys(), untied)
    for name in groups.keys() & parameters.keys():
        tensors |= {key: replace(tensors[key], finite=True) for key in groups[name]}
    if not loading.dtype_plan:  # a plan that keeps some modules in fp32 sets dtypes later
        for name in groups.keys() & parameters.keys():
            tensors |= {key: replace(tensors[key], cast=parameters[name].dtype) for key in groups[name]}
    return Checkpoint(
        files=files,
        tensors=tensors,
        groups={name: keys for name, keys in groups.items() if name not in mismatched},
        missing=absent - tied,
        mismatched={name: shapes for name, shapes in mismatched.items() if name not in tied},
        unused=sorted(info.unexpected_keys),
        untied=untied,
        tied_missing=tied_missing,
        loading=loading,
    )


def _try(model: Any, tensors: dict[str, StoredTensor], loading: LoadStateDictConfig) -> LoadStateDictInfo:
    """Return transformers' report of loading tensors of these names and shapes into a copy of ``model``."""
    trial = copy.deepcopy(model)  # loading replaces even the real buffers by empty tensors
    with one_after_another():
        info, _ = convert_and_load_state_dict_in_model(
            trial, {key: tensor.meta() for key, tensor in tensors.items()}, loading
        )
    trial._adjust_missing_and_unexpected_keys(info)
    return info


@contextmanager
def one_after_another() -> Iterator[None]:
    """Inside the block, transformers reads tensors when it needs them, not in advance in threads."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _groups(
    model: Any, tensors: dict[str, StoredTensor], config: LoadStateDictConfig
) -> dict[str, list[str]]:
    """Return {parameter: keys it is made of} by transformers' renaming.

    Keys are processed in the order of its loading function.
    """
    mapping = config.weight_mapping or []
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    targets_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    state = model.state_dict()
    groups: dict[str, list[str]] = defaultdict(list)
    for key in sorted(tensors, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
        if name not in state and key in state:
            name, pattern = rename_source_key(
                key, [], [], base_model_prefix=model.base_model_prefix, meta_state_dict=state
            )
        patterns = targets_of[pattern].target_patterns if pattern is not None else [""]
        for target in (name.replace(patterns[0], other) if patterns[0] else name for other in patterns):
            if target in state:
                groups[target].append(key)
    return dict(groups)


def _ties(
    model: Any, groups: dict[str, list[str]], tensors: dict[str, StoredTensor], missing: set[str]
) -> tuple[set[str], set[str]]:
    """Return the ties that the files contradict, and the parameters that a tie may overwrite.

    The latter are missing parameters and stored copies with the same values.
    """
    untied, overwritten = set[str](), set(missing)
    for name, source in model.all_tied_weights_keys.items():
        if name in missing or source in missing:
            continue
        own = [tensors[key] for key in groups[name]]
        tied = [tensors[key] for key in groups[source]]
        if _equal(own, tied):
            overwritten.add(name)
        else:
            untied.add(name)
    return untied, overwritten


def _equal(one: list[StoredTensor], other: list[StoredTensor]) -> bool:
    if len(one) != len(other):
        return False
    for a, b in zip(one, other, strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return False
        if not all(torch.equal(*parts) for parts in zip(a.parts(), b.parts(), strict=True)):
            return False
    return True


def _also_tied(ties: dict[str, str], found: set[str], untied: set[str]) -> set[str]:
    """Return the parameters that are tied to one in ``found``."""
    rings: dict[str, set[str]] = defaultdict(set)
    for name, source in ties.items():
        if name not in untied:
            rings[source] |= {name, source}
    return {name for ring in rings.values() if ring & found for name in ring}
