"""Who stores and multiplies a quantized matrix: bitsandbytes, quanto, or plain torch.

Each backend is a small value with the formats it serves and the devices it runs on; :data:`BACKENDS` names them, in order of
preference. What a backend really does on this machine is tried on a small matrix (see :mod:`~bitrank_quant.backends.probe`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn

from bitrank_quant.backends.reference import QuantLinear, QuantWeight
from bitrank_quant.formats.base import Format
from bitrank_quant.formats.codebook import Codebook
from bitrank_quant.formats.integer import Affine, Int8Row
from bitrank_quant.kernels.build import cache_folder, check_private

MakeLinear = Callable[[nn.Linear, Format, torch.dtype], nn.Module]


@dataclass(frozen=True)
class Backend:
    """A library that holds quantized linear layers.

    ``make`` turns a linear layer (weights on their final device) into a frozen quantized one; ``serves`` says for which formats, and
    ``misfit`` why one of them cannot hold a matrix of some shape, (out, in).
    """

    name: str
    library: str
    devices: tuple[str, ...]
    serves: Callable[[Format], bool]
    make: MakeLinear
    misfit: Callable[[Format, tuple[int, int]], str | None] = lambda fmt, shape: None

    def missing(self, device: str) -> str | None:
        """Why this backend cannot run on ``device`` here; None when it can."""
        if importlib.util.find_spec(self.library) is None:
            return f"the package {self.library} is not installed"
        return None if device in self.devices else f"{self.name} does not run on {device}"


def _bnb_linear(linear: nn.Linear, fmt: Format, compute_dtype: torch.dtype) -> nn.Module:
    _quiet_bitsandbytes()
    if isinstance(fmt, Int8Row):
        return _bnb_8bit(linear, compute_dtype)
    assert isinstance(fmt, Codebook)
    from bitsandbytes.nn import Linear4bit, Params4bit

    made = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=compute_dtype,
        device="meta",
    )
    made.weight = Params4bit(
        linear.weight.detach().contiguous(),
        requires_grad=False,
        quant_type=fmt.name,
        compress_statistics=fmt.double_quant,
    )
    made.bias = _frozen(linear.bias)
    # On the CPU an evaluation would repack the codes into a layout that has no backward pass, and training after it would
    # lose its gradients without a word.
    made.support_avx512bf16_for_cpu = False
    made = made.to(linear.weight.device)
    # bitsandbytes decodes into the type that the weight came in, then casts to that of the input: two
    # roundings where these differ.
    made.weight.quant_state.dtype = compute_dtype
    return made


def _bnb_8bit(linear: nn.Linear, compute_dtype: torch.dtype) -> nn.Module:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    made = Linear8bitLt(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        has_fp16_weights=False,
        threshold=6.0,
        device="meta",
    )
    # bitsandbytes quantizes from fp16; weights far outside its range would become inf, the cast below would say so.
    made.weight = Int8Params(linear.weight.detach().contiguous(), requires_grad=False, has_fp16_weights=False)
    made.bias = _frozen(linear.bias)
    made.compute_dtype = compute_dtype  # for the decoder; bitsandbytes itself goes by its input
    return made.to(linear.weight.device)


def _quanto_linear(linear: nn.Linear, fmt: Format, compute_dtype: torch.dtype) -> nn.Module:
    from optimum.quanto import qint2, qint4, qint8
    from optimum.quanto.nn import QLinear

    if fmt.bits < 8:
        _build_quanto_extension(linear.weight.device.type)
    qtype = {8: qint8, 4: qint4, 2: qint2}[fmt.bits]
    made = QLinear.from_module(linear.to(compute_dtype), weights=qtype)
    if isinstance(fmt, Affine):
        made.weight_group_size = fmt.block
    made.freeze()
    return made.requires_grad_(False)


@cache
def _build_quanto_extension(device: str) -> None:
    """Let quanto compile its unpacking code for ``device`` into the cache folder, one process at a time.

    quanto itself would compile into its installed package, which may be read-only or shared. A build that was killed leaves a lock
    file, and later processes would wait for it for ever; under a lock that the operating system releases with its holder, such a file
    belongs to a dead process and is removed.
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


def _torch_linear(linear: nn.Linear, fmt: Format, compute_dtype: torch.dtype) -> nn.Module:
    return QuantLinear(QuantWeight(linear.weight, fmt, compute_dtype), linear.bias)


def _bnb_serves(fmt: Format) -> bool:
    return (isinstance(fmt, Codebook) and fmt.block == 64) or (isinstance(fmt, Int8Row) and fmt.activations)


def _quanto_serves(fmt: Format) -> bool:
    if isinstance(fmt, Int8Row):
        return not fmt.activations
    return isinstance(fmt, Affine) and fmt.bits in (2, 4) and fmt.block == 64


def _quanto_misfit(fmt: Format, shape: tuple[int, int]) -> str | None:
    whole = fmt.block is None or shape[1] % fmt.block == 0
    return (
        None
        if whole
        else f"quanto holds {fmt} only in rows of a multiple of {fmt.block} numbers, this matrix has {shape[1]} in a row"
    )


# First that serves a format wins under `auto`. quanto comes last: its int8 took 1.7 and its int4 2.3 times a bf16 step on a CPU.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("bitsandbytes", "bitsandbytes", ("cpu", "cuda", "mps", "xpu"), _bnb_serves, _bnb_linear),
        Backend("torch", "torch", ("cpu", "cuda", "mps", "xpu"), lambda fmt: True, _torch_linear),
        Backend(
            "quanto", "optimum.quanto", ("cpu", "cuda", "mps"), _quanto_serves, _quanto_linear, _quanto_misfit
        ),
    )
}


@dataclass(frozen=True)
class Override:
    """One ``--quant-backend``: the format that replaces every low-bit one of a plan, who serves it, and where."""

    format: str | None
    backend: str | None
    device: str | None


OVERRIDES: dict[str, Override] = {
    "auto": Override(None, None, None),
    "cuda-4bit": Override("nf4-dq", "bitsandbytes", "cuda"),
    "cuda-8bit": Override("llm-int8", "bitsandbytes", "cuda"),
    "cpu-4bit": Override("nf4-dq", "bitsandbytes", "cpu"),
    "cpu-int8": Override("int8", "torch", "cpu"),
    "quanto-int4": Override("int4-g64", "quanto", None),
    "quanto-int8": Override("int8", "quanto", None),
    "none": Override("bf16", "torch", None),
}


def _frozen(bias: Tensor | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)


def _quiet_bitsandbytes() -> None:
    # It warns at every call that bf16 inputs are cast, and once that an optional kernel package is absent.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
