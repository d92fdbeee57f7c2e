"""Who stores and multiplies a quantized matrix: bitsandbytes, quanto, or plain torch.

Each backend is a small value with the formats it serves and the devices it runs on; :data:`BACKENDS` names them, in order of
preference. What a backend really does on this machine is tried on a small matrix (:func:`probe`), not looked up in a table.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn

from bitrank_quant.errors import QuantError
from bitrank_quant.formats import Affine, Codebook, Float, Format, Int8Row, parse_format
from bitrank_quant.reference import QuantLinear, QuantWeight

MakeLinear = Callable[[nn.Linear, Format, torch.dtype], nn.Module]


@dataclass(frozen=True)
class Backend:
    """A library that holds quantized linear layers.

    ``make`` turns a linear layer (weights on their final device) into a frozen quantized one; ``serves`` says for which formats.
    """

    name: str
    library: str
    devices: tuple[str, ...]
    serves: Callable[[Format], bool]
    make: MakeLinear

    def missing(self, device: str) -> str | None:
        """Why this backend cannot run on ``device`` here; None when it can."""
        if importlib.util.find_spec(self.library) is None:
            return f"the package {self.library} is not installed"
        return None if device in self.devices else f"{self.name} does not run on {device}"


def _bnb_linear(linear: nn.Linear, fmt: Format, compute_dtype: torch.dtype) -> nn.Module:
    _quiet_bitsandbytes()
    if isinstance(fmt, Int8Row):
        return _bnb_8bit(linear)
    assert isinstance(fmt, Codebook)
    from bitsandbytes.nn import Linear4bit, Params4bit

    made = Linear4bit(linear.in_features, linear.out_features, bias=linear.bias is not None, compute_dtype=compute_dtype, device="meta")
    made.weight = Params4bit(
        linear.weight.detach().contiguous(), requires_grad=False, quant_type=fmt.name, compress_statistics=fmt.double_quant
    )
    made.bias = _frozen(linear.bias)
    # On the CPU an evaluation would repack the codes into a layout that has no backward pass, and training after it would
    # lose its gradients without a word.
    made.support_avx512bf16_for_cpu = False
    return made.to(linear.weight.device)


def _bnb_8bit(linear: nn.Linear) -> nn.Module:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    made = Linear8bitLt(
        linear.in_features, linear.out_features, bias=linear.bias is not None, has_fp16_weights=False, threshold=6.0, device="meta"
    )
    # bitsandbytes quantizes from fp16; weights far outside its range would become inf, the cast below would say so.
    made.weight = Int8Params(linear.weight.detach().contiguous(), requires_grad=False, has_fp16_weights=False)
    made.bias = _frozen(linear.bias)
    return made.to(linear.weight.device)


def _quanto_linear(linear: nn.Linear, fmt: Format, compute_dtype: torch.dtype) -> nn.Module:
    from optimum.quanto import qint2, qint4, qint8
    from optimum.quanto.nn import QLinear

    if fmt.bits < 8:
        _build_quanto_extension()
    qtype = {8: qint8, 4: qint4, 2: qint2}[fmt.bits]
    made = QLinear.from_module(linear.to(compute_dtype), weights=qtype)
    if isinstance(fmt, Affine):
        made.weight_group_size = fmt.block
    made.freeze()
    return made.requires_grad_(False)


@cache
def _build_quanto_extension() -> None:
    """Let quanto compile its unpacking code, one process at a time.

    A build that was killed leaves a lock file behind, and every later process would wait for it for ever. Under a lock that the
    operating system releases with its holder, a lock file that is there is a dead one.
    """
    from optimum import quanto

    extensions = Path(quanto.__file__).parent / "library" / "extensions"
    digest = hashlib.sha256(str(extensions).encode()).hexdigest()[:12]
    with FileLock(Path(tempfile.gettempdir()) / f"bitrank-quanto-{digest}.lock"):
        for dead in extensions.glob("*/build/lock"):
            dead.unlink()
        packed = quanto.nn.QLinear.from_module(nn.Linear(128, 8), weights=quanto.qint4)
        packed.freeze()
        with torch.no_grad():
            packed(torch.zeros(1, 128))


def _torch_linear(linear: nn.Linear, fmt: Format, compute_dtype: torch.dtype) -> nn.Module:
    return QuantLinear(QuantWeight(linear.weight, fmt, compute_dtype), linear.bias)


def _bnb_serves(fmt: Format) -> bool:
    return (isinstance(fmt, Codebook) and fmt.block == 64) or (isinstance(fmt, Int8Row) and fmt.activations)


def _quanto_serves(fmt: Format) -> bool:
    if isinstance(fmt, Int8Row):
        return not fmt.activations
    return isinstance(fmt, Affine) and fmt.bits in (2, 4) and fmt.block == 64


# First that serves a format wins under `auto`. quanto comes last: its int8 took 1.7 and its int4 2.3 times a bf16 step on a CPU.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("bitsandbytes", "bitsandbytes", ("cpu", "cuda", "mps", "xpu"), _bnb_serves, _bnb_linear),
        Backend("torch", "torch", ("cpu", "cuda", "mps", "xpu"), lambda fmt: True, _torch_linear),
        Backend("quanto", "optimum.quanto", ("cpu", "cuda", "mps"), _quanto_serves, _quanto_linear),
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


def choose_backend(fmt: Format, device: str) -> Backend:
    """The first of :data:`BACKENDS` that serves ``fmt`` on ``device``; plain torch serves everything."""
    return next(b for b in BACKENDS.values() if b.serves(fmt) and b.missing(device) is None)


def override_for(name: str, device: str) -> Override:
    """The ``--quant-backend`` called ``name``, checked against ``device``.

    Raises :class:`QuantError` when there is none of that name, or when this machine lacks it; the message names those it has.
    """
    here = ", ".join(available_overrides(device))
    if name not in OVERRIDES:
        raise QuantError(f"unknown quant backend {name!r}; here: {here} (all: {', '.join(OVERRIDES)})")
    if reason := _lacks(OVERRIDES[name], device):
        raise QuantError(f"quant backend {name!r} cannot run here: {reason}; here: {here}")
    return OVERRIDES[name]


def available_overrides(device: str) -> list[str]:
    """The ``--quant-backend`` names that this machine can serve on ``device``."""
    return [name for name, override in OVERRIDES.items() if _lacks(override, device) is None]


def probe(backend: Backend, fmt: Format, device: str, dtype: torch.dtype = torch.bfloat16) -> str | None:
    """Try ``backend`` on a 64 × 128 matrix, forward and backward. None when it works, otherwise what went wrong."""
    try:
        layer = nn.Linear(128, 64, device=device, dtype=dtype)
        want_OI = fmt.decode(fmt.encode(layer.weight), (64, 128), torch.float32)
        x_NI = torch.randn(16, 128, device=device, dtype=dtype, requires_grad=True)
        expected = x_NI.detach().float() @ want_OI.T + layer.bias.detach().float()
        got = backend.make(layer, fmt, dtype)(x_NI)
        got.sum().backward()
        error = float((got.detach().float() - expected).norm() / expected.norm())
    except Exception as problem:  # noqa: BLE001 - whatever a driver or a kernel raises is the answer here
        return f"{type(problem).__name__}: {problem}".splitlines()[0][:200]
    if x_NI.grad is None or not bool(torch.isfinite(x_NI.grad).all()):
        return "no gradient reaches the input"
    return None if error < 0.05 else f"output is off by {error:.1%} from the reference"


def _lacks(override: Override, device: str) -> str | None:
    if override.device is not None and override.device != device:
        return f"it needs device {override.device}, this run is on {device}"
    if override.backend is None:
        return None
    backend = BACKENDS[override.backend]
    if reason := backend.missing(device):
        return reason
    fmt = parse_format(override.format or "bf16")
    return None if isinstance(fmt, Float) or backend.serves(fmt) else f"{backend.name} does not serve {fmt}"


def _frozen(bias: Tensor | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)


def _quiet_bitsandbytes() -> None:
    # It warns at every call that bf16 inputs are cast, and once that an optional kernel package is absent.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
