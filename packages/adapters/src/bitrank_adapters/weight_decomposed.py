"""Weight-decomposed adapters (DoRA, Liu et al. 2024): a low-rank update of directions, and trained lengths.

Each row of a matrix W (one output) is its length times its direction: W' = m ∘ (W + s · B A) / ‖W + s · B A‖,
with one norm and one trained length m per row, and no gradient through the norm (section 4.3). The
computation is PEFT's, which decodes a quantized base in every pass. The name is shared with another method,
which prunes ranks (:mod:`~bitrank_adapters.dynamic_rank`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import PeftModel
from torch import nn

from bitrank_adapters.attach import DEFAULT_SCALE, attach_config, lora_config, shapes_of
from bitrank_adapters.errors import AdapterError
from bitrank_adapters.plans import RankPlan, check_ranks, positive_ranks
from bitrank_adapters.rank_hooks import adapted
from bitrank_adapters.scales import AdapterScale

_ADAPTER = "default"


def attach_weight_decomposed(
    model: nn.Module,
    plan: RankPlan,
    *,
    scale: AdapterScale = DEFAULT_SCALE,
    heads: Sequence[str] = (),
    seed: int = 0,
) -> PeftModel:
    """As :func:`~bitrank_adapters.attach_lora`, with a trained length per row of every adapted matrix.

    The lengths start as those of the rows of the base, so that a new adapter changes nothing. Raises
    :class:`~bitrank_adapters.AdapterError` as ``attach_lora`` does, and for 8-bit layers of bitsandbytes on a
    CPU.
    """
    check_ranks(plan, shapes_of(model, plan), heads)
    _refuse_8_bit_on_cpu(model, plan)
    config = lora_config(plan, scale, heads)
    config.use_dora = True
    peft_model = attach_config(model, config, scale, heads, seed)
    for _, layer in adapted(peft_model):
        reset_magnitude(layer)  # PEFT rounds the lengths to the dtype of the base
    return peft_model


def _refuse_8_bit_on_cpu(model: nn.Module, plan: RankPlan) -> None:
    """Raise :class:`AdapterError` for a matrix that bitsandbytes holds in 8 bits on a CPU.

    PEFT decodes the base for the starting lengths before any forward pass, and on a CPU puts a copy of the
    weight without scales in its place, after which the layer cannot compute.
    """
    for name in positive_ranks(plan):
        parameters = model.get_submodule(name).parameters()  # a property ``weight`` may decode the matrix
        if any(type(one).__name__ == "Int8Params" and one.device.type == "cpu" for one in parameters):
            raise AdapterError(
                f"PEFT loses the scales of {name}, which bitsandbytes holds in 8 bits on a CPU, when it "
                "reads the lengths of its rows; give int8 in place of llm-int8, or another rank rule than "
                "dora-weight"
            )


def reset_magnitude(layer: Any) -> None:
    """Set the lengths of a weight-decomposed ``layer`` to those of its rows, its adapter included.

    Call it after factors were written: the layer then computes (W + s · B A) x. Other layers do not change.
    """
    lengths = getattr(layer, "lora_magnitude_vector", {})
    if _ADAPTER not in lengths:
        return
    lengths[_ADAPTER].update_layer(
        base_layer=layer.get_base_layer(),
        lora_A=layer.lora_A[_ADAPTER].weight.detach(),
        lora_B=layer.lora_B[_ADAPTER].weight.detach(),
        scaling=layer.scaling[_ADAPTER],
    )
    lengths[_ADAPTER].weight.data = lengths[_ADAPTER].weight.data.float()
