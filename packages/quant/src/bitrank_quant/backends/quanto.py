"""Backend "quanto": int8 rows, and affine 2- and 4-bit integers in groups of 64, by optimum-quanto."""

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

# Inside this context, accesses to quanto's weights skip `__torch_function__`.
_no_torch_function = torch._C.DisableTorchFunctionSubclass
_GROUP = 64
_LIBRARY = "optimum.quanto"


def serves(fmt: Format) -> bool:
    """Whether quanto supports ``fmt``."""
    if isinstance(fmt, Int8Row):
        return not fmt.activations
    return isinstance(fmt, Affine) and fmt.bits in (2, 4) and fmt.block == _GROUP and not fmt.double_quant


def misfit(fmt: Format, shape: tuple[int, int]) -> str | None:
    """The reason why ``shape`` does not fit: quanto does not pad rows."""
    if fmt.block is None or shape[1] % fmt.block == 0:
        return None
    return (
        f"quanto holds {fmt} only in rows of a multiple of {fmt.block} numbers, "
        f"this matrix has {shape[1]} in a row"
    )


def make(linear: nn.Linear, fmt: Format, compute_dtype: torch.dtype) -> nn.Module:
    """A frozen ``QLinear`` with the weight of ``linear``."""
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
    """Make quanto compile its unpacking code for ``device`` into the cache folder, one process at a time.

    By default quanto compiles into its installed package, which may be read-only or shared. A killed build
    leaves a lock file for which later processes would wait forever. This function holds a second lock, which
    the operating system releases if its process dies, so any lock file found is stale and is removed.
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
    library: Any = sys.modules.get(_LIBRARY)  # its layers exist only after an import
    return library is not None and computes_as(layer, library.nn.QLinear)


def decode(layer: Any) -> Decode:
    """The decoder of ``layer``; it uses the scratch buffer if the compiled kernels can read the weight."""
    return partial(_decode, layer, scratch)


def stored_weight(layer: Any) -> Tensor:
    """The (out, in) matrix of ``layer``."""
    return _decode(layer).detach()


def _decode(layer: Any, buffer: kernels.Scratch = None) -> Tensor:
    weight = layer._parameters["weight"]
    if (fast := _decode_on_cpu(weight, buffer)) is not None:
        return fast
    made: Tensor = weight.dequantize()
    return made


def _decode_on_cpu(weight: Any, buffer: kernels.Scratch) -> Tensor | None:
    """The matrix by the compiled kernels, if ``weight`` has one of the two layouts that they support."""
    from optimum.quanto import WeightQBitsTensor, WeightQBytesTensor

    kind, data = type(weight), weight._data
    with _no_torch_function():
        shape, dtype = weight.shape, weight.dtype
    if weight.axis != 0 or len(shape) != 2:
        return None
    if kind is WeightQBytesTensor:
        return kernels.int8_rows(data, weight._scale, dtype, buffer)
    if kind is WeightQBitsTensor:
        return kernels.quanto(data._data, weight._scale, weight._shift, data.bits, shape, dtype, buffer)
    return None


def nbytes(fmt: Format, shape: tuple[int, int], dtype: torch.dtype) -> int:
    """Stored bytes of a matrix.

    Scales and shifts are in the compute dtype; quanto also stores two unused scalars for activations.
    """
    size = dtype.itemsize
    if isinstance(fmt, Int8Row):
        return math.prod(shape) + size * shape[0] + 2 * size
    groups = math.prod(shape) // _GROUP  # exact: other shapes are refused
    scales = groups if groups > 1 else _GROUP  # quanto treats a single group as a column of scaled numbers
    return -(-groups * fmt.bits // 8) * _GROUP + 2 * size * scales + 2 * size


BACKEND = Backend(
    "quanto",
    "int8 rows and affine 2- and 4-bit groups, by optimum-quanto",
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
