"""Fused products of quantized layers, decoded into one scratch buffer, equal each layer's own product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitrank_adapters import AdapterScale, attach_lora, fuse, uniform_ranks
from bitrank_quant import BACKENDS, block_matrices, decoder, parse_format
from bitrank_quant.backends import scratch
from bitrank_quant.kernels.status import kernels_status
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

FORMATS_BY_BACKEND = {
    "bitsandbytes": ("nf4-dq", "nf4", "fp4"),
    "torch": ("int3-g64", "bf16", "nf4-dq"),
    "quanto": ("int8", "int4-g64", "int8"),
}


def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    ).eval()


def bert() -> nn.Module:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50, hidden_size=64, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4
        )
    ).eval()


def adapted_model(make: Any, backend: str, texts: tuple[str, str, str], fused: bool) -> Any:
    """Return a model with adapters, whose matrices have several formats."""
    model = make()
    names = [matrix.name for matrix in block_matrices(model)]
    for number, name in enumerate(names):
        layer = model.get_submodule(name)
        made = BACKENDS[backend].make(
            layer.requires_grad_(False), parse_format(texts[number % 3]), torch.float32
        )
        model.set_submodule(name, made)
    adapted = attach_lora(model, uniform_ranks(names, 4), scale=AdapterScale(1.3, "constant"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    if fused:
        fuse(adapted, decoder)
    return adapted


def logits_and_gradients(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits, and the gradients of the adapters."""
    logits = model(input_ids=torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(2))).logits
    logits.square().mean().backward()
    return logits.detach(), {
        name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None
    }


def gradients_close(gradients: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> bool:
    scale = max(float(gradient.norm()) for gradient in expected.values())
    return gradients.keys() == expected.keys() and all(
        float((gradients[name] - gradient).norm()) < tolerance * scale for name, gradient in expected.items()
    )


@pytest.mark.parametrize("backend", FORMATS_BY_BACKEND)
@pytest.mark.parametrize("make", [llama, bert])
def test_one_scratch_buffer_fits_matrices_of_all_shapes_and_formats(
    make: Any, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The buffer starts empty and grows from the query's matrix to the feed-forward matrices.
    monkeypatch.setattr(scratch, "_buffers", {})
    logits, gradients = logits_and_gradients(
        adapted_model(make, backend, FORMATS_BY_BACKEND[backend], fused=True)
    )
    assert bool(scratch._buffers) == kernels_status().startswith("compiled")
    plain_logits, plain_gradients = logits_and_gradients(
        adapted_model(make, backend, FORMATS_BY_BACKEND[backend], fused=False)
    )
    assert torch.allclose(logits, plain_logits, atol=1e-4) and gradients_close(
        gradients, plain_gradients, 1e-4
    )


@pytest.mark.parametrize("make", [llama, bert])
def test_llm_int8_trains_with_its_decoded_matrix_and_evaluates_with_its_own_forward(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training, evaluation and training again give the same results fused and by PEFT's own path.

    The tolerance of the evaluation is larger, because bitsandbytes rounds activations there.
    """
    from bitsandbytes.nn import Linear8bitLt

    training_flags: list[bool] = []  # the layer's training flag at each call
    own = Linear8bitLt.forward
    plain, model = (adapted_model(make, "bitsandbytes", ("llm-int8",) * 3, fused) for fused in (False, True))
    monkeypatch.setattr(
        Linear8bitLt, "forward", lambda layer, x: (training_flags.append(layer.training), own(layer, x))[1]
    )
    for dropout in (m for one in (plain, model) for m in one.modules() if isinstance(m, nn.Dropout)):
        dropout.p = 0.0
    for training, tolerance in ((True, 1e-4), (False, 1e-2), (True, 1e-4)):
        expected, gradients = logits_and_gradients(plain.train(training))
        training_flags.clear()
        logits, fused_gradients = logits_and_gradients(model.train(training))
        assert (logits - expected).norm() < tolerance * expected.norm() and gradients_close(
            fused_gradients, gradients, tolerance
        )
        assert set(training_flags) == (set() if training else {False})
