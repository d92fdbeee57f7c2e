"""Backend "bitsandbytes": 4-bit code books with blocks of 64, and LLM.int8()."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bitrank_quant import kernels
from bitrank_quant.backends.base import Backend, Decode, computes_as, frozen
from bitrank_quant.backends.scratch import scratch
from bitrank_quant.formats.base import Format, Tensors
from bitrank_quant.formats.codebook import CODEBOOKS, DYNAMIC_8BIT, Codebook
from bitrank_quant.formats.integer import Int8Row

# Inside this context, accesses to weights of bitsandbytes skip `__torch_function__`, which costs 2 µs each.
_no_torch_function = torch._C.DisableTorchFunctionSubclass
_BLOCK = 64
_NESTED = 256  # block scales under one outer scale
# Bytes that bitsandbytes stores with each matrix: its fp32 code books and the mean of the scales.
_BOOK, _SCALE_BOOK, _OFFSET = 4 * 16, 4 * 256, 4


def serves(fmt: Format) -> bool:
    """Whether bitsandbytes supports ``fmt``."""
    if isinstance(fmt, Codebook):
        return fmt.bits == 4 and fmt.block == _BLOCK
    return isinstance(fmt, Int8Row) and fmt.activations


def make(linear: nn.Linear, fmt: Format, compute_dtype: torch.dtype) -> nn.Module:
    """A frozen ``Linear4bit`` or ``Linear8bitLt`` with the weight of ``linear``."""
    _silence_warnings()
    if isinstance(fmt, Int8Row):
        return _make_8bit(linear, compute_dtype)
    assert isinstance(fmt, Codebook)
    return _make_4bit(linear, fmt, compute_dtype)


def _silence_warnings() -> None:
    """Silence a warning per call (bf16 inputs are cast) and one about an optional kernel package."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _make_4bit(linear: nn.Linear, fmt: Codebook, compute_dtype: torch.dtype) -> nn.Module:
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
    made.bias = frozen(linear.bias)
    # On the CPU an evaluation would repack the codes into a layout without a backward pass, and any training
    # after it would silently get no gradients.
    made.support_avx512bf16_for_cpu = False
    made = made.to(linear.weight.device)
    # bitsandbytes decodes into the original dtype of the weight, then casts to the input's: two roundings if
    # they differ.
    made.weight.quant_state.dtype = compute_dtype
    return made


def _make_8bit(linear: nn.Linear, compute_dtype: torch.dtype) -> nn.Module:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    made = Linear8bitLt(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        has_fp16_weights=False,
        threshold=6.0,
        device="meta",
    )
    # bitsandbytes quantizes from fp16; weights outside of its range become inf in the cast, which is visible.
    made.weight = Int8Params(linear.weight.detach().contiguous(), requires_grad=False, has_fp16_weights=False)
    made.bias = frozen(linear.bias)
    made.compute_dtype = compute_dtype  # for the decoder; bitsandbytes itself uses the dtype of its input
    return made.to(linear.weight.device)


def make_from_codes(
    tensors: Tensors, fmt: Format, shape: tuple[int, int], bias: Tensor | None, compute_dtype: torch.dtype
) -> nn.Module:
    """A frozen ``Linear4bit`` or ``Linear8bitLt`` over ``tensors``, as ``fmt`` stores them."""
    _silence_warnings()
    made = _from_codes_8bit if isinstance(fmt, Int8Row) else _from_codes_4bit
    return made(tensors, fmt, shape, bias, compute_dtype)


def codes_misfit(fmt: Format, shape: tuple[int, int]) -> str | None:
    """The reason why given codes of a matrix cannot be stored; None if they can.

    The 4-bit blocks of bitsandbytes continue from row to row, those of a format do not.
    """
    if isinstance(fmt, Codebook) and shape[1] % _BLOCK:
        return f"bitsandbytes needs rows of whole blocks of {_BLOCK}, and these have {shape[1]} weights"
    return None


def _from_codes_4bit(
    tensors: Tensors, fmt: Any, shape: tuple[int, int], bias: Tensor | None, compute_dtype: torch.dtype
) -> nn.Module:
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn import Linear4bit, Params4bit

    device = tensors["codes"].device

    def own(book: Tensor) -> Tensor:
        """A copy: as in a layer that bitsandbytes made, and as counted, every layer stores its books."""
        return book.to(device, copy=True)

    options: dict[str, Any] = {"blocksize": _BLOCK, "quant_type": fmt.name, "dtype": compute_dtype}
    if fmt.double_quant:
        outer = QuantState(
            absmax=tensors["outer"], code=own(DYNAMIC_8BIT), blocksize=_NESTED, dtype=torch.float32
        )
        options |= {"offset": tensors["offset"], "state2": outer}
    state = QuantState(
        absmax=tensors["absmax"], shape=torch.Size(shape), code=own(CODEBOOKS[fmt.name]), **options
    )
    made = Linear4bit(shape[1], shape[0], bias=bias is not None, compute_dtype=compute_dtype, device="meta")
    made.weight = Params4bit(
        tensors["codes"][:, None],
        requires_grad=False,
        quant_state=state,
        blocksize=_BLOCK,
        compress_statistics=fmt.double_quant,
        quant_type=fmt.name,
        module=made,
        bnb_quantized=True,
    )
    made.quant_state = state
    made.bias = frozen(bias)
    made.support_avx512bf16_for_cpu = False  # as in _make_4bit
    return made


def _from_codes_8bit(
    tensors: Tensors, _fmt: Format, shape: tuple[int, int], bias: Tensor | None, compute_dtype: torch.dtype
) -> nn.Module:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    made = Linear8bitLt(
        shape[1], shape[0], bias=bias is not None, has_fp16_weights=False, threshold=6.0, device="meta"
    )
    codes_OI, absmax_O = tensors["codes"], tensors["scale"] * 127
    made.weight = Int8Params(codes_OI, requires_grad=False, has_fp16_weights=False, CB=codes_OI, SCB=absmax_O)
    made.bias = frozen(bias)
    made.compute_dtype = compute_dtype
    return made


def owns(layer: nn.Module) -> bool:
    """Whether ``layer`` is a ``Linear4bit`` or ``Linear8bitLt``."""
    return _is_4bit(layer) or _is_8bit(layer)


def _is_4bit(layer: nn.Module) -> bool:
    library: Any = sys.modules.get("bitsandbytes.nn")  # its layers exist only after an import
    return library is not None and computes_as(layer, library.Linear4bit)


def _is_8bit(layer: nn.Module) -> bool:
    library: Any = sys.modules.get("bitsandbytes.nn")
    return library is not None and computes_as(layer, library.Linear8bitLt)


def decode(layer: Any) -> Decode | None:
    """The decoder of ``layer``; None for an 8-bit layer made elsewhere, whose compute dtype is unknown."""
    if _is_4bit(layer):
        return partial(_decode_4bit, layer, scratch)
    return Int8InTraining(layer) if hasattr(layer, "compute_dtype") else None


class Int8InTraining:
    """Decoder of an LLM.int8() layer for training on a CPU.

    bitsandbytes quantizes activations on a CPU only in evaluation mode. In training mode it multiplies by the
    decoded matrix, which it computes in two passes into new memory.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def applies(self) -> bool:
        """Whether the layer currently multiplies by the decoded matrix."""
        codes_OI = _tensors_8bit(self.layer).CB
        return self.layer.training and codes_OI is not None and codes_OI.is_cpu

    def __call__(self) -> Tensor:
        stored, dtype = _tensors_8bit(self.layer), self.layer.compute_dtype
        scale_O = stored.SCB.mul(1.0 / 127.0)
        made = kernels.int8_rows(stored.CB, scale_O, dtype, scratch)
        return stored.CB.to(dtype).mul_(scale_O[:, None]) if made is None else made


def stored_weight(layer: Any) -> Tensor:
    """The (out, in) matrix of ``layer``; fp32 for an 8-bit layer."""
    if _is_4bit(layer):
        return _decode_4bit(layer).detach()
    stored = _tensors_8bit(layer)
    made: Tensor = stored.CB.float() * stored.SCB.float()[:, None] / 127
    return made


def _tensors_8bit(layer: Any) -> Any:
    """The object with codes (CB) and scales (SCB): the weight before the first product, ``state`` after."""
    weight = layer._parameters["weight"]
    return weight if getattr(weight, "SCB", None) is not None else layer.state


def _decode_4bit(layer: Any, buffer: kernels.Scratch = None) -> Tensor:
    weight, dtype = layer._parameters["weight"], layer.compute_dtype
    with _no_torch_function():
        codes: Tensor = weight.data
    made = None if codes.is_cuda else decode_on_cpu(codes, weight.quant_state, dtype, buffer)
    if made is None:
        from bitsandbytes.functional import dequantize_4bit

        made = dequantize_4bit(codes, weight.quant_state)
    return made if made.dtype == dtype else made.to(dtype)


def decode_on_cpu(
    codes: Tensor, state: Any, dtype: torch.dtype, buffer: kernels.Scratch = None
) -> Tensor | None:  # fmt: skip
    """The matrix in ``dtype``, decoded by the compiled kernels; None if they cannot read it.

    They run on torch's threads, while bitsandbytes starts a second pool that competes for the same cores. Its
    blocks continue from row to row while ours restart with each, so a row must be a whole number of blocks.
    """
    shape, block = state.shape, state.blocksize
    if len(shape) != 2 or shape[1] % block:
        return None
    if not state.nested:
        return kernels.codebook(codes, state.code, state.absmax, block, shape, dtype, buffer)
    scales = state.absmax, DYNAMIC_8BIT, state.state2.absmax, state.offset
    return kernels.nested_codebook(codes, state.code, scales, block, shape, dtype, buffer)


def nbytes(fmt: Format, shape: tuple[int, int], _dtype: torch.dtype) -> int:
    """Stored bytes of a matrix.

    4-bit codes form one sequence of blocks, whatever the shape. With double quantization there are 8-bit
    scales, their outer scales and code book.
    """
    if not isinstance(fmt, Codebook):
        return fmt.nbytes(shape)
    numbers = math.prod(shape)
    blocks = -(-numbers // _BLOCK)
    nested = blocks + 4 * -(-blocks // _NESTED) + _SCALE_BOOK + _OFFSET
    return -(-numbers // 2) + (nested if fmt.double_quant else 4 * blocks) + _BOOK


def hidden_tensors(layer: Any) -> Iterator[Tensor]:
    """Codes and scales of an 8-bit layer (in ``state`` or on its weight), or a 4-bit layer's quant state."""
    weight = layer._parameters["weight"]
    for holder in (getattr(layer, "state", None), weight):
        for key in ("CB", "SCB"):
            if isinstance(getattr(holder, key, None), Tensor):
                yield getattr(holder, key)
    state = getattr(weight, "quant_state", None)
    while state is not None:
        for key in ("absmax", "code", "offset"):
            if isinstance(getattr(state, key, None), Tensor):
                yield getattr(state, key)
        state = getattr(state, "state2", None)


def peft_flag(fmt: Format) -> str:
    """PEFT selects its bitsandbytes classes by flags of the whole model; a mixed model needs both flags."""
    return f"is_loaded_in_{fmt.bits}bit"


BACKEND = Backend(
    "bitsandbytes",
    "4-bit code books and LLM.int8(), by bitsandbytes",
    "bitsandbytes",
    ("cpu", "cuda", "mps", "xpu"),
    serves,
    make,
    owns,
    stored_weight,
    decode,
    nbytes,
    hidden_tensors,
    make_from_codes=make_from_codes,
    codes_misfit=codes_misfit,
    peft_flag=peft_flag,
)
