"""Detect and refuse checkpoints and models whose weights are codes, which must not be read as weights."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, Never

import torch
from bitrank_quant import BACKENDS
from torch import nn

from bitrank.errors import UserError

# Names of tensors that accompany a weight's codes, by the library that writes them.
_BESIDE = {
    "GPTQ or AWQ": r"\.(qweight|qzeros|g_idx)$",
    "bitsandbytes": r"\.(SCB|weight_format|absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*)$",
    "float8 or compressed-tensors": r"\.(weight_(scale|scale_inv|packed|zero_point)|input_scale)$",
    "MXFP4": r"_(blocks|scales)$",
    "quanto": r"\.weight\._(data|scale|shift)$",
    "HQQ": r"\.(W_q|meta)$",
    "AQLM or VPTQ": r"\.(codes|codebooks|centroids|indices)$",
}
SAVED_BY_BITRANK = "quantized.safetensors"  # as bitrank_quant.save_quantized names it
# In the original format transformers would write codes again, or fail where it cannot.
_SAVE = "save it by model.save_pretrained(other_folder, save_original_format=False), with its tokenizer"
_REMEDY = (
    "give the original in 16 or 32 bits, or write one: load it with transformers, call model.dequantize() if "
    f"its format offers that, and {_SAVE}"
)


def refuse_quantized(name: object, unexpected: Iterable[str], dtypes: Mapping[str, torch.dtype]) -> None:
    """Raise :class:`UserError` if keys or dtypes show that weights are stored as codes.

    ``unexpected`` are the keys that the model does not expect, ``dtypes`` the stored dtypes by key.
    """
    for key in sorted(unexpected):
        for library, pattern in _BESIDE.items():
            if re.search(pattern, key):
                raise UserError(f"{name} is quantized already ({library}: it holds {key}); {_REMEDY}")
    codes = next((key for key, dtype in dtypes.items() if key.endswith("weight") and _is_code(dtype)), None)
    if codes:
        raise UserError(
            f"{name} is quantized already: {codes} is stored as {str(dtypes[codes]).removeprefix('torch.')}; "
            f"{_REMEDY}"
        )


def refuse_quantized_config(name: object, config: Any) -> None:
    """Raise :class:`UserError` if ``config`` states that its weights are quantized."""
    text = getattr(config, "get_text_config", lambda: config)()
    stored = getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None)
    if stored:
        method = (
            stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
        )
        raise UserError(
            f"{name} is quantized already: its config.json says quant_method {method}; {_remedy_for(method)}"
        )


def refuse_quantized_model(model: nn.Module, todo: str, adapters_todo: str) -> None:
    """Raise :class:`UserError` if ``model`` has adapters, or weights that are codes of any library."""
    if hasattr(model, "peft_config"):
        raise UserError(f"this model has adapters; {adapters_todo} before attach")
    if is_quantized(model):
        raise UserError(f"this model is quantized; {todo}, with its float weights")


def is_quantized(model: nn.Module) -> bool:
    """Whether a weight of ``model`` is stored as codes, by this project or another library."""
    if any(_is_code(parameter.dtype) for parameter in model.parameters()):
        return True
    return any(backend.owns(module) for module in model.modules() for backend in BACKENDS.values())


def refuse_saving(*_: Any, **__: Any) -> Never:
    """``save_pretrained`` of a quantized model: stock transformers would load random weights."""
    raise UserError(
        "transformers would load the codes of this quantized model as random weights; load the base with "
        "quantization_config=BitrankConfig(plan['precision']) of bitrank_quant.hf_quantizer, whose "
        "save_pretrained can be loaded again, or write layers of the backend torch by "
        "bitrank_quant.save_quantized. For adapters call save_pretrained of the model that attach returns"
    )


def _remedy_for(method: object) -> str:
    """The way to 16-bit weights that transformers offers for ``method``."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
    from transformers.quantizers.base import HfQuantizer

    original = "give the original in 16 or 32 bits"
    # config.json says `bitsandbytes` for both of its methods
    known = next((name for name in AUTO_QUANTIZER_MAPPING if name.startswith(str(method))), None)
    if known is None:
        return f"{original} (transformers does not know this method)"
    config, quantizer = AUTO_QUANTIZATION_CONFIG_MAPPING[known], AUTO_QUANTIZER_MAPPING[known]
    if "dequantize" in inspect.signature(config).parameters:
        how = f"from_pretrained(folder, quantization_config={config.__name__}(dequantize=True))"
        return f"{original}, or write one: load it by transformers' {how} and {_SAVE}"
    if quantizer._dequantize is not HfQuantizer._dequantize:
        return f"{original}, or write one: load it with transformers, call model.dequantize() and {_SAVE}"
    return f"{original} (transformers cannot dequantize this method)"


def _is_code(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point or dtype.itemsize == 1
