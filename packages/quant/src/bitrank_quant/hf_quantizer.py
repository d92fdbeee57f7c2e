"""A precision plan as a quantizer of transformers.

    from_pretrained(folder, quantization_config=BitrankConfig(plan))

Each matrix is encoded while transformers' loader reads it, so names, conversions and ties are the loader's.
``save_pretrained`` writes codes and scales, and ``from_pretrained`` reads them back in any program that has
imported this module; without the import transformers warns about an unknown method and starts from random
weights. Only the reference backend is supported: the layers of other libraries have their own file formats.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from bitrank_quant.apply import PrecisionPlan, apply_precision, swap_weights, with_weight
from bitrank_quant.backends.reference import QuantWeight
from bitrank_quant.errors import QuantError
from bitrank_quant.formats.float import Float
from bitrank_quant.formats.parse import parse_format
from bitrank_quant.matrices import weight_matrices
from bitrank_quant.serialize import to_reference

METHOD = "bitrank"
_CODES = ".quantized."


@register_quantization_config(METHOD)
class BitrankConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """A precision plan, ``{module name: format text}``; modules that it does not name stay in 16 bits."""

    def __init__(self, plan: PrecisionPlan | None = None, **_: Any) -> None:
        self.quant_method = METHOD
        self.plan = {name: str(parse_format(text)) for name, text in (plan or {}).items()}


@register_quantizer(METHOD)
class BitrankQuantizer(HfQuantizer):  # type: ignore[misc]
    """Encodes linear matrices during loading, and embeddings, which heads may share, after it."""

    def __init__(self, quantization_config: BitrankConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.plan: PrecisionPlan = quantization_config.plan
        self.dtype = torch.bfloat16
        self._tied: dict[str, tuple[str, nn.Module]] = {}

    @property
    def is_trainable(self) -> bool:
        """Whether adapters can be trained on the quantized model."""
        return True

    def is_serializable(self) -> bool:
        """Whether ``save_pretrained`` can write the quantized model."""
        return True

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        """Raises :class:`QuantError` if the plan names a module that ``model`` lacks."""
        self.dtype = kwargs.get("dtype") or self.dtype
        shapes = {matrix.name: matrix.shape for matrix in weight_matrices(model)}
        strange = [name for name in self.plan if name not in shapes]
        if strange:
            raise QuantError(f"the plan names {strange[0]!r}, which is no weight matrix of this model")
        if self.pre_quantized:
            self._insert_empty_modules(model, shapes, _stored_codes(kwargs["checkpoint_files"]))

    def _insert_empty_modules(
        self, model: Any, shapes: dict[str, tuple[int, int]], codes: dict[str, dict[str, Tensor]]
    ) -> None:
        """Insert quantized modules with meta tensors, which the loader fills by name."""
        for head, source in list(model.all_tied_weights_keys.items()):
            name, embedding = head.removesuffix(".weight"), source.removesuffix(".weight")
            if embedding in codes:
                del model.all_tied_weights_keys[head]
                module = model.get_submodule(name)
                self._tied[name] = (embedding, module)
                swap_weights(model, {name: _HeadPlaceholder(getattr(module, "bias", None))})
        for matrix, tensors in codes.items():
            weight = QuantWeight.of(tensors, parse_format(self.plan[matrix]), shapes[matrix], self.dtype)
            swap_weights(model, with_weight(weight, {matrix: model.get_submodule(matrix)}))
            _mark_initialised(model.get_submodule(matrix))

    def param_needs_quantization(self, model: Any, param_name: str, **_options: Any) -> bool:
        """Whether this parameter is an untied linear matrix of the plan."""
        name, _, attribute = param_name.rpartition(".")
        fmt = parse_format(self.plan[name]) if name in self.plan else None
        if attribute != "weight" or fmt is None or (isinstance(fmt, Float) and fmt.dtype == self.dtype):
            return False
        ties = model.all_tied_weights_keys
        shared = param_name in ties or param_name in ties.values()
        return not shared and isinstance(model.get_submodule(name), (nn.Linear, Conv1D))

    def get_quantize_ops(self) -> ConversionOps:
        """The loader's conversion for such a parameter."""
        return _Encode(self)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        if self.pre_quantized:
            for head, (embedding, module) in self._tied.items():
                module.bias = model.get_submodule(head).bias
                swap_weights(model, with_weight(model.get_submodule(embedding).quantized, {head: module}))
            return model
        rest = {
            name: fmt
            for name, fmt in self.plan.items()
            if isinstance(model.get_submodule(name), nn.Embedding) or name in _heads_of_embeddings(model)
        }
        apply_precision(model, rest, compute_dtype=self.dtype)
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The state dict without heads that share the codes of an embedding."""
        shared = _heads_over_codes(model)
        state = model.state_dict()
        return {key: value for key, value in state.items() if key.partition(_CODES)[0] not in shared}, {}


class _Encode(ConversionOps):
    """Encodes one linear matrix and replaces its layer; the loader has nothing left to assign."""

    def __init__(self, quantizer: BitrankQuantizer) -> None:
        self._quantizer = quantizer

    def convert(self, input_dict: dict[str, Any], *_: Any, **kwargs: Any) -> dict[str, Any]:
        model, parameter = kwargs["model"], kwargs["full_layer_name"]
        (value,) = input_dict.values()
        weight: Tensor = value[0] if isinstance(value, list) else value
        name = parameter.rpartition(".")[0]
        layer = model.get_submodule(name)
        weight_OI = weight.T.contiguous() if isinstance(layer, Conv1D) else weight
        swap_weights(
            model, {name: to_reference(layer, weight_OI, self._quantizer.plan[name], self._quantizer.dtype)}
        )
        _mark_initialised(model.get_submodule(name))
        kwargs["missing_keys"].discard(parameter)
        return {}


class _HeadPlaceholder(nn.Module):
    """Placeholder of a tied head, with its bias, until the embedding's codes are loaded."""

    def __init__(self, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.bias = bias


def _mark_initialised(module: nn.Module) -> None:
    """Mark ``module`` as initialised, so that transformers does not overwrite its weights."""
    module._is_hf_initialized = True  # type: ignore[assignment]


def _stored_codes(files: list[str]) -> dict[str, dict[str, Tensor]]:
    """{module: its codes and scales as meta tensors}, as listed in the safetensors ``files``."""
    found: dict[str, dict[str, Tensor]] = {}
    for path in map(Path, files):
        with safe_open(path, framework="pt") as file:
            for key in (key for key in file.keys() if _CODES in key):  # noqa: SIM118 - no dictionary
                name, _, part = key.partition(_CODES)
                tensor = file.get_tensor(key)
                found.setdefault(name, {})[part] = torch.empty_like(tensor, device="meta")
    return found


def _heads_of_embeddings(model: Any) -> set[str]:
    ties = model.all_tied_weights_keys
    return {name.removesuffix(".weight") for pair in ties.items() for name in pair}


def _heads_over_codes(model: nn.Module) -> set[str]:
    """Names of linear layers that share the codes of an embedding."""
    codes = {
        id(m.quantized) for m in model.modules() if isinstance(m, nn.Embedding) and hasattr(m, "quantized")
    }
    linear = ((name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear))
    return {name for name, m in linear if id(getattr(m, "quantized", None)) in codes}
