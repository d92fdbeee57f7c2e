"""Choose a model's safetensors files, and read their tensors one at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.modeling_utils import _get_resolved_checkpoint_files

from bitrank.errors import UserError
from bitrank.models.quantized_checkpoints import SAVED_BY_BITRANK

PART = 2**20  # numbers read at a time


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file, read when it is indexed, like a slice of an open file.

    transformers indexes such slices. The file is opened for each read, because pages of an open file count as
    this process's memory. ``cast`` is the dtype of the result; casting while reading avoids a large tensor in
    both dtypes. None keeps the file's dtype. ``finite`` tensors are checked while they are read, which costs
    about 0.1 ms per million numbers; a buffer may hold infinities, such as a mask.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    cast: torch.dtype | None = None
    finite: bool = False

    def __getitem__(self, _: object) -> Tensor:
        dtype = self.cast or self.dtype
        if math.prod(self.shape) <= PART:
            with safe_open(self.path, framework="pt") as file:
                small: Tensor = file.get_tensor(self.key)
            self._check(small, dtype)
            return small.to(dtype, copy=True)
        whole = torch.empty(self.shape, dtype=dtype)
        row = 0
        for part in self.parts():
            self._check(part, dtype)
            whole[row : row + len(part)] = part
            row += len(part)
        return whole

    def _check(self, part: Tensor, dtype: torch.dtype) -> None:
        """Raise :class:`UserError` for numbers that ``dtype`` holds as NaN or infinity."""
        if not (self.finite and part.is_floating_point() and part.numel()):
            return
        low, high = (float(bound) for bound in part.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UserError(
                f"{self.path}: {self.key} holds NaN or infinite numbers, so every result would be wrong; "
                "fetch the file again, or take an earlier checkpoint of the training that wrote it"
            )
        most = torch.finfo(dtype).max if dtype.is_floating_point else math.inf
        if max(-low, high) > most:
            raise UserError(
                f"{self.path}: {self.key} holds numbers up to {max(-low, high):.3g}, but {dtype} ends at "
                f"{most:.3g}; give --set dtype=fp32, or bf16 where it is wide enough"
            )

    def parts(self) -> Iterator[Tensor]:
        """Yield the tensor in the file's dtype, some rows at a time; a scalar is one part."""
        rows = max(1, PART // max(1, math.prod(self.shape[1:])))
        for start in range(0, self.shape[0] if self.shape else 1, rows):
            with safe_open(self.path, framework="pt") as file:
                part: Tensor = (
                    file.get_slice(self.key)[start : start + rows]
                    if self.shape
                    else file.get_tensor(self.key)
                )
                yield part.clone()

    def meta(self) -> Tensor:
        """Return an empty ``meta`` tensor of its shape and dtype."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


def weight_files(folder: Path, config: Any = None) -> list[Path]:
    """Return the files that transformers would load from ``folder``.

    A single safetensors file takes precedence over a sharded one. Raises :class:`UserError` if there is none,
    or only formats that can run code when they are read.
    """
    if (folder / SAVED_BY_BITRANK).is_file():
        raise UserError(
            f"{folder} contains a model that bitrank has quantized (bitrank export --to quantized): open it "
            "with bitrank_quant.load_quantized; to train further, export the run with --to merged"
        )
    named = getattr(config, "transformers_weights", None)
    try:
        found, _ = _get_resolved_checkpoint_files(
            folder,
            variant=None,
            gguf_file=None,
            use_safetensors=True,
            user_agent=None,
            is_remote_code=False,
            transformers_explicit_filename=named,
        )
    except (OSError, ValueError, RecursionError) as error:
        others = sorted(
            path.name
            for path in folder.iterdir()
            if path.suffix in {".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf"}
        )
        if others:
            raise UserError(
                f"{folder} has its weights in {others[0]}, but bitrank reads safetensors only: load it once "
                "with transformers and write it with model.save_pretrained(folder)"
            ) from error
        raise UserError(
            f"{folder} has no weights: expected model.safetensors, or model.safetensors.index.json with all "
            "the files that it names"
        ) from error
    except (KeyError, TypeError, AttributeError) as error:  # of the index, whose form is not checked there
        index = folder / (named or "model.safetensors.index.json")
        raise UserError(
            f"{index} is no index of safetensors files: expected an object with the objects metadata and "
            "weight_map (tensor to file); fetch the file again, or write the model with save_pretrained"
        ) from error
    paths = [Path(file) for file in found or []]
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise UserError(f"{folder} lacks {', '.join(absent)}, which its index names; fetch the folder again")
    return paths


def stored_tensors(files: Iterable[Path]) -> Iterator[tuple[str, StoredTensor]]:
    """Yield every tensor of ``files`` with its key. Raises :class:`UserError` for a file that is cut short or
    damaged.
    """
    for path in files:
        try:
            yield from _tensors_of(path)
        except SafetensorError as error:
            raise UserError(
                f"{path} is no whole safetensors file ({error}); it may have been cut short while it was "
                "written or fetched: fetch or write it again"
            ) from error


def _tensors_of(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - safe_open returns no dictionary
            part = file.get_slice(key)
            dtype = part[:0].dtype if part.get_shape() else file.get_tensor(key).dtype
            yield key, StoredTensor(path, key, tuple(part.get_shape()), dtype)
