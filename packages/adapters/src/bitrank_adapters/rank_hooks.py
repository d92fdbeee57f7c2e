"""The hook that a training loop calls, and its form for constant ranks (LoRA).

The training loop calls one hook with these methods and is independent of the adaptation method. ``step``
counts optimizer steps from 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor

from bitrank_adapters.errors import AdapterError
from bitrank_adapters.scales import AdapterScale
from bitrank_adapters.stored import STORED_DTYPE, adapter_bytes, round_adapter, saved_parameters

_ADAPTER = "default"


class FixedRanks:
    """LoRA: ranks stay as planned."""

    def __init__(self, model: PeftModel) -> None:
        self._model: Any = model
        self._is_stored_form = False

    def penalty(self) -> Tensor | None:
        """Differentiable term to add to the task loss; None if there is none."""
        return None

    def after_step(self, step: int) -> None:
        """Run after each optimizer step, while its gradients still exist."""

    def settled(self, step: int) -> bool:
        """Whether ranks are final after ``step``."""
        return True

    def is_constant(self) -> bool:
        """Whether every step computes the same function of the parameters, so that it may be recorded.

        Not for a subclass with an :meth:`after_step` of its own, which may change ranks, masks or scales.
        """
        return type(self).after_step is FixedRanks.after_step

    def ranks(self) -> dict[str, int]:
        """Active rank of every adapted matrix."""
        return {name: module.r[_ADAPTER] for name, module in adapted(self._model)}

    def state(self) -> tuple[dict[str, Tensor], str]:
        """Tensors and JSON text from which :meth:`restore` continues with the same numbers."""
        return {}, "{}"

    def restore(self, tensors: dict[str, Tensor], text: str) -> None: ...

    def resized(self) -> dict[str, tuple[int, Tensor]] | None:
        """Changes of the trainable parameters since the last call; None if there are none.

        See :class:`~bitrank_adapters.shrink.ShrinkingRanks`.
        """
        return None

    def rescaled(self) -> dict[str, float] | None:
        """{parameter name: factor} of trainable parameters that were multiplied since the last call.

        None if there are none. The model's output is unchanged; gradients and moments change by the inverse.
        """
        return None

    def finish(self) -> None:
        """Run once after training, when the model has its final parameters: here nothing remains to do."""

    @contextmanager
    def as_stored(self) -> Iterator[None]:
        """Inside, the model computes with the adapter as its file holds it: every number rounded to bf16.

        Parameters and scales come back afterwards. Nested uses change nothing more.
        """
        if self._is_stored_form:
            yield
            return
        kept = {p: p.detach().clone() for p in saved_parameters(self._model).values()}
        scalings = {layer: layer.scaling[_ADAPTER] for _, layer in adapted(self._model)}
        self._is_stored_form = True
        try:
            self._take_stored_form()
            yield
        finally:
            self._is_stored_form = False
            for parameter, value in kept.items():
                parameter.data.copy_(value)
            for layer, scaling in scalings.items():
                layer.scaling[_ADAPTER] = scaling

    def stored_bytes(self) -> int:
        """Bytes of all tensors in the file that :meth:`save` writes."""
        return adapter_bytes(self._model)

    def save(self, folder: Path) -> None:
        """Save the adapter in PEFT's format (safetensors, bf16)."""
        with self.as_stored():
            parameters = saved_parameters(self._model)
            rounded = {name: p.detach().to(STORED_DTYPE) for name, p in parameters.items()}
            self._model.save_pretrained(str(folder), state_dict=rounded, save_embedding_layers=False)

    def _take_stored_form(self) -> None:
        round_adapter(self._model)


def scale_of(model: PeftModel) -> AdapterScale:
    """The scale that ``model`` was attached with.

    Raises :class:`AdapterError` for a model that this package did not attach adapters to.
    """
    scale = getattr(model, "adapter_scale", None)
    if not isinstance(scale, AdapterScale):
        raise AdapterError("this model's adapters have no scale policy; make it with attach_adalora")
    return scale


def keep_loss_plain(model: PeftModel) -> None:
    """Stop PEFT from adding the orthogonality term to the ``loss`` of the model's output.

    PEFT adds it to every micro-batch, so it would count once per micro-batch instead of once per step.
    """
    tuner: Any = model.base_model

    def forward(*args: Any, **kwargs: Any) -> Any:
        return tuner.model.forward(*args, **kwargs)

    tuner.forward = forward


def adapted(model: PeftModel) -> list[tuple[str, Any]]:
    """(matrix name in the unadapted model, adapter layer) of every adapted matrix."""
    prefix = "base_model.model."
    return [
        (name.removeprefix(prefix), module)
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and _ADAPTER in module.lora_A
    ]
