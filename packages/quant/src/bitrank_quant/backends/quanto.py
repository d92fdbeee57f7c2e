"""Backend "quanto": int8 rows, and affine integers of 2 and 4 bits in groups of 64, from optimum-quanto."""

from __future__ import annotations

import hashlib
import math
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from bitrank_quant import kernels
from bitrank_quant.backends.base import Backend, Decode, computes_as
from bitrank_quant.backends.scratch import scratch
from bitrank_quant.formats.base import Format
from bitrank_quant.formats.integer import Affine, Int8Row
from bitrank_quant.kernels.build import cache_folder, check_private

_unwatched = (
    torch._C.DisableTorchFunctionSubclass
)  # its weights pass every access through Python, but in here
_GROUP = 64
_LIBRARY = "optimum.quanto"


def serves(fmt: Format) -> bool:
    """Whether quanto has ``fmt``."""
    if isinstance(fmt, Int8Row):
        return not fmt.activations
    return isinstance(fmt, Affine) and fmt.bits in (2, 4) and fmt.block == _GROUP


def misfit(fmt: Format, shape: tuple[int, int]) -> str | None:
    """quanto pads no rows."""
    if fmt.block is None or shape[1] % fmt.block == 0:
        return None
    return f"quanto holds {fmt} only in rows of a multiple of {fmt.block} numbers, this matrix has {shape[1]} in a row"


def make(linear: nn.Linear, fmt: Format, compute_dtype: torch.dtype) -> nn.Module:
    """A frozen ``QLinear``."""
    from optimum.quanto import qint2, qint4, qint8
    from optimum.quanto.nn import QLinear

    if fmt.bits < 8:
        _build_extension(linear.weight.device.type)
    qtype = {8: qint8, 4: qint4, 2: qint2}[fmt.bits]
    made = QLinear.from_module(linear.to(compute_dtype), weights=qtype)
    if isinstance(fmt, Affine):
        made.weight_group_size = fmt.block
    made.freeze()
    return made.requires_grad_(False)


@cache
def _build_extension(device: str) -> None:
    """Let quanto compile its unpacking code for ``device`` into the cache folder, one process at a time.

    quanto itself would compile into its installed package, which may be read-only or shared. A build that was
    killed leaves a lock file, and later processes would wait for it for ever; under a lock that the operating
    system releases with its holder, such a file belongs to a dead process and is removed.
    """
    from optimum import quanto
    from optimum.quanto.library.extensions import extension

    version = hashlib.sha256(
        f"{quanto.__version__} {torch.__version__} {Path(quanto.__file__)}".encode()
    ).hexdigest()[:16]
    folder = cache_folder() / f"quanto-{version}"
    folder.mkdir(exist_ok=True, mode=0o700)
    check_private(folder)
    with FileLock(folder / "building.lock"):
        for name, built in extension._extensions.items():
            built.build_directory = str(folder / name)
            Path(built.build_directory, "lock").unlink(missing_ok=True)
        with torch.random.fork_rng(devices=[]):
            packed = quanto.nn.QLinear.from_module(nn.Linear(128, 8).to(device), weights=quanto.qint4)
        packed.freeze()
        with torch.no_grad():
            packed(torch.zeros(1, 128, device=device))


def owns(layer: nn.Module) -> bool:
    """Whether ``layer`` is a linear layer of quanto."""
    library: Any = sys.modules.get(_LIBRARY)  # a layer of it exists only where it was imported
    return library is not None and computes_as(layer, library.nn.QLinear)


def decode(layer: Any) -> Decode:
    """The decoder of ``layer``, into the scratch buffer where our kernels can read its weight."""
    return partial(_decode, layer, scratch)


def stored_weight(layer: Any) -> Tensor:
    """The matrix of ``layer``."""
    return _decode(layer).detach()


def _decode(layer: Any, buffer: kernels.Scratch = None) -> Tensor:
    weight = layer._parameters["weight"]
    if (fast := _decode_on_cpu(weight, buffer)) is not None:
        return fast
    made: Tensor = weight.dequantize()
    return made


def _decode_on_cpu(weight: Any, buffer: kernels.Scratch) -> Tensor | None:
    """The matrix by our kernels when ``weight`` is stored in one of the two layouts that they read."""
    from optimum.quanto import WeightQBitsTensor, WeightQBytesTensor

    kind, data = type(weight), weight._data
    with _unwatched():
        shape, dtype = weight.shape, weight.dtype
    if weight.axis != 0 or len(shape) != 2:
        return None
    if kind is WeightQBytesTensor:
        return kernels.int8_rows(data, weight._scale, dtype, buffer)
    if kind is WeightQBitsTensor:
        return kernels.quanto(data._data, weight._scale, weight._shift, data.bits, shape, dtype, buffer)
    return None


def nbytes(fmt: Format, shape: tuple[int, int], dtype: torch.dtype) -> int:
    """Scales (and shifts) in the compute dtype, and two scalars for activations that quanto keeps though
    unused.
    """
    size = dtype.itemsize
    if isinstance(fmt, Int8Row):
        return math.prod(shape) + size * shape[0] + 2 * size
    groups = math.prod(shape) // _GROUP  # whole ones: other shapes are refused
    scales = groups if groups > 1 else _GROUP  # a single group it takes for a column, and scales each number
    return -(-groups * fmt.bits // 8) * _GROUP + 2 * size * scales + 2 * size


BACKEND = Backend(
    "quanto",
    "int8 rows and affine 2- and 4-bit groups, from optimum-quanto",
    _LIBRARY,
    ("cpu", "cuda", "mps"),
    serves,
    make,
    owns,
    stored_weight,
    decode,
    nbytes,
    misfit=misfit,
)
