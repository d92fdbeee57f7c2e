"""Every architecture in every storage and computation mode equals plain transformers on the same weights.

The reference of a quantized model is a plain model with the decoded weights.
"""

from __future__ import annotations

from typing import Any

import architectures
import pytest
import torch
from bitrank.models.fuse import attention_for, fuse_model
from bitrank_adapters import AdapterScale, attach_lora, uniform_ranks
from bitrank_quant import apply_precision, block_matrices, stored_weight, weight_matrices
from bitrank_trainer import implementation
from torch import Tensor
from transformers.pytorch_utils import Conv1D

FORMATS = {
    "fp": ("fp32", "fp32"),
    "int8": ("int8", "int8"),
    "nf4": ("nf4", "fp32"),
}  # of linear matrices and of tables
TOLERANCE = 3e-4  # of the norm: fp32 rounding through two random blocks


def stored(name: str, formats: str, attention: str = "eager") -> Any:
    """The model with its matrices stored in ``formats``, computing in fp32."""
    model = architectures.build(name, attention)
    linear, table = FORMATS[formats]
    owned = [m for m in weight_matrices(model) if m.tied_to is None]
    plan = {m.name: table if m.role == "embedding" else linear for m in owned}
    apply_precision(model, plan, compute_dtype=torch.float32)
    return model


def decoded(name: str, quantized: Any) -> Any:
    """A plain model with the decoded weights of ``quantized``."""
    model = architectures.build(name)
    for matrix in weight_matrices(model):
        target = model.get_submodule(matrix.name)
        weight_OI = stored_weight(quantized.get_submodule(matrix.name))
        target.weight.data.copy_(weight_OI.T if isinstance(target, Conv1D) else weight_OI)
    return model


def adapted(model: Any, fused: bool) -> Any:
    """``model`` with random adapters on the matrices of its blocks (of all modules if blocks are shared)."""
    blocks = block_matrices(model) or [m for m in weight_matrices(model) if m.role == "other"]
    if model.config.model_type.startswith("mamba"):
        blocks = [m for m in blocks if not m.name.endswith("out_proj")]  # PEFT refuses to adapt these
    made = attach_lora(model, uniform_ranks([m.name for m in blocks], 3), scale=AdapterScale(1.3, "constant"))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in sorted(made.named_parameters()):
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    if fused:
        fuse_model(made)
    return made.train()


def answers(name: str, model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits at positions without padding, and the gradient of each adapter."""
    given = architectures.inputs(name)
    logits = model(**given).logits
    if logits.dim() == 3 and "decoder_input_ids" not in given:
        logits = logits[given["attention_mask"].bool()]
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(4))
    (logits * weights).sum().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert float((found[0] - expected[0]).norm()) < TOLERANCE * float(expected[0].norm())
    assert found[1].keys() == expected[1].keys() and len(found[1]) >= 4
    for name, gradient in expected[1].items():
        scale = max(float(gradient.norm()), 1e-3)
        assert float((found[1][name] - gradient).norm()) < 10 * TOLERANCE * scale, name


@pytest.mark.filterwarnings("ignore::bitrank_trainer.OwnAttention")
@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_stored_and_fused_models_equal_plain_transformers(name: str, formats: str) -> None:
    attention = implementation(architectures.model_class(name), attention_for("cpu", fused=True))
    plain, fused = stored(name, formats), stored(name, formats, attention)
    expected = answers(name, adapted(decoded(name, plain), fused=False))
    assert_equal(answers(name, adapted(plain, fused=False)), expected)
    assert_equal(answers(name, adapted(fused, fused=True)), expected)
