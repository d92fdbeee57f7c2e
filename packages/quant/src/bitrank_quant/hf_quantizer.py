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
from torch.utils.hooks import RemovableHandle
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
from bitrank_quant.matrices import tied_modules, weight_matrices
from bitrank_quant.serialize import to_reference

METHOD = "bitrank"
_CODES = ".quantized."


@register_quantization_config(METHOD)
class BitrankConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """A precision plan, ``{module name: format text}``; other modules keep the dtype of the model."""

    def __init__(self, plan: PrecisionPlan | None = None, **_: Any) -> None:
        self.quant_method = METHOD
        self.plan = {name: str(parse_format(text)) for name, text in (plan or {}).items()}


@register_quantizer(METHOD)
class BitrankQuantizer(HfQuantizer):  # type: ignore[misc]
    """Encodes linear matrices during loading, and embeddings, which heads may share, after it."""

    def __init__(self, quantization_config: BitrankConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.plan: PrecisionPlan = quantization_config.plan
        self.dtype = torch.bfloat16  # that of the model, known once it is built
        self._hiding: list[RemovableHandle] = []

    @property
    def is_trainable(self) -> bool:
        """Whether adapters can be trained on the quantized model."""
        return True

    def is_serializable(self) -> bool:
        """Whether ``save_pretrained`` can write the quantized model."""
        return True

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        """Raises :class:`QuantError` if the plan names a module that ``model`` lacks."""
        self.dtype = model.dtype
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
        for matrix, tensors in codes.items():
            names = [matrix, *_take_followers(model, matrix)]
            weight = QuantWeight.of(tensors, parse_format(self.plan[matrix]), shapes[matrix], self.dtype)
            swap_weights(model, with_weight(weight, {name: model.get_submodule(name) for name in names}))
            for name in names:
                module = model.get_submodule(name)
                _mark_initialised(module)
                if name != matrix:  # the file has the codes once, so the loader must not miss these
                    self._hiding.append(module.register_state_dict_post_hook(_hide_codes))

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
            while self._hiding:
                self._hiding.pop().remove()
            return model
        rest = {
            name: fmt
            for name, fmt in self.plan.items()
            if isinstance(model.get_submodule(name), nn.Embedding) or name in _heads_of_embeddings(model)
        }
        apply_precision(model, rest, compute_dtype=self.dtype)
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The state dict with the codes that several modules share under the name of their owner alone."""
        tied, state = tied_modules(model), model.state_dict()
        again = {key for key in state if _CODES in key and key.partition(_CODES)[0] in tied}
        return {key: value for key, value in state.items() if key not in again}, {}


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


def _take_followers(model: Any, owner: str) -> list[str]:
    """Modules that transformers would tie to the weight of ``owner``; it no longer ties them."""
    ties = model.all_tied_weights_keys
    found = [parameter for parameter, source in ties.items() if source == f"{owner}.weight"]
    for parameter in found:
        del ties[parameter]
    return [parameter.removesuffix(".weight") for parameter in found]


def _hide_codes(_module: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: object) -> None:
    """Remove the codes of one module from a state dict."""
    for key in [key for key in state if key.startswith(f"{prefix}quantized.")]:
        del state[key]


def _mark_initialised(module: nn.Module) -> None:
    """Mark a linear ``module`` as initialised, so that transformers does not overwrite its bias.

    Embeddings are initialised: buffers that are in no file, such as the scale of Gemma's, get their values.
    """
    if not isinstance(module, nn.Embedding):
        module._is_hf_initialized = True  # type: ignore[assignment]
        for parameter in module.parameters():  # ModernBERT's blocks initialise their layers themselves
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]


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
