"""Training without low-rank adapters: trained scales of quantization groups replace the stored ones.

The layers come from elsewhere (their parameters are named ``….group_scales.…``); this module wraps the model
as PEFT's, so that the rest of a run is that of LoRA, and saves the scales. A trained scale takes the place of
a stored one, in the dtype of its format, so the model has as many bytes as without training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bitrank_adapters.attach import DEFAULT_SCALE, attach_config, lora_config
from bitrank_adapters.errors import AdapterError
from bitrank_adapters.rank_hooks import FixedRanks
from bitrank_adapters.scales import AdapterScale

_FILE = "group_scales.safetensors"
_PREFIX = "base_model.model."
_PART = ".quantized.group_scales."


def attach_frozen(
    model: nn.Module, *, scale: AdapterScale = DEFAULT_SCALE, heads: Sequence[str] = (), seed: int = 0
) -> PeftModel:
    """``model`` as a PEFT model without adapters; all parameters but those of ``heads`` are frozen."""
    return attach_config(model, lora_config({}, scale, heads), scale, heads, seed)


class TrainedScales(FixedRanks):
    """No adapters: ``dtypes`` has the stored dtype of each trained scale, by its name in the bare model.

    Raises :class:`AdapterError` if ``model`` lacks one of them.
    """

    def __init__(self, model: PeftModel, dtypes: Mapping[str, torch.dtype]) -> None:
        super().__init__(model)
        parameters = dict(model.named_parameters())
        missing = [name for name in dtypes if f"{_PREFIX}{name}" not in parameters]
        if missing:
            raise AdapterError(f"the model has no trained scale {missing[0]!r}; train_scales makes them")
        self._scales = {name: parameters[f"{_PREFIX}{name}"] for name in dtypes}
        self._dtypes = dict(dtypes)

    @contextmanager
    def as_stored(self) -> Iterator[None]:
        """Inside, the model computes with every scale rounded to the dtype of its format, and trained heads
        rounded to bf16."""
        kept = {p: p.detach().clone() for p in self._scales.values()}
        with super().as_stored():
            try:
                for name, parameter in self._scales.items():
                    parameter.data.copy_(parameter.data.to(self._dtypes[name]))
                yield
            finally:
                for parameter, value in kept.items():
                    parameter.data.copy_(value)

    def save(self, folder: Path) -> None:
        """Save trained heads as PEFT does, and scales in ``group_scales.safetensors``, in their own dtypes.

        :meth:`stored_bytes` does not count the scales, which replace those of the base.
        """
        super().save(folder)
        tensors = {
            name.replace(_PART, "."): parameter.detach().to("cpu", self._dtypes[name]).contiguous()
            for name, parameter in self._scales.items()
        }
        save_file(tensors, folder / _FILE)


def read_scales(folder: Path) -> dict[str, Tensor]:
    """The trained scales in the adapter ``folder``: ``{matrix.scale or matrix.minimum: values}``.

    Empty if no scales were trained. Raises :class:`AdapterError` for a damaged file.
    """
    path = folder / _FILE
    if not path.is_file():
        return {}
    try:
        return load_file(path)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read ({error}); copy the run again") from error
