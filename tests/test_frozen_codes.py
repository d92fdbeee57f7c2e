"""A model whose matrices are codes refuses changes that it could not keep, and stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitrank
import pytest
import torch
from bitrank_quant import QuantError
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

UP = "model.layers.0.mlp.up_proj"
FORMATS = ["int2-g64", "int4-g64-dq", "sym4-g64", "nf3", "int8", "fp8", "fp16"]
IDS = torch.arange(4, 16).view(2, 6)


def llama() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=100)).eval()


def applied(text: str, dtype: torch.dtype = torch.float32) -> Any:
    model = llama().to(dtype)
    done = bitrank.apply(model, {"precision": {UP: text, "model.embed_tokens": "int8"}})
    assert done[UP].backend == "torch"
    return model


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def with_random_factors(adapted: Any) -> Any:
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return adapted.eval()


def by_attach(model: nn.Module) -> Any:
    return bitrank.attach(model, {"ranks": {UP: 4}})


def by_peft(model: nn.Module) -> Any:
    return get_peft_model(model, LoraConfig(r=4, target_modules=["up_proj"]))  # type: ignore[arg-type]


@pytest.mark.parametrize("attach", [by_attach, by_peft])
@pytest.mark.parametrize("text", FORMATS)
def test_merging_into_codes_raises_and_keeps_the_adapter(
    text: str, attach: Callable[[nn.Module], Any]
) -> None:
    adapted = with_random_factors(attach(applied(text)))
    before = logits(adapted)
    assert not torch.allclose(before, logits(applied(text)), atol=1e-3)
    for merge in (adapted.merge_and_unload, adapted.merge_adapter):
        for safe in (False, True):
            with pytest.raises(QuantError, match=r"cannot be changed in place.*bitrank export --to merged"):
                merge(safe_merge=safe)
    assert torch.equal(logits(adapted), before)


def test_start_that_takes_a_part_out_of_codes_raises() -> None:
    """PiSSA subtracts its start from the base, which codes cannot follow."""
    pissa = LoraConfig(r=4, target_modules=["up_proj"], init_lora_weights="pissa")  # type: ignore[arg-type]
    with pytest.raises(QuantError, match="cannot be changed in place"):
        get_peft_model(applied("int8"), pissa)


def test_weight_of_a_quantized_linear_layer_is_its_decoded_matrix() -> None:
    layer = applied("int4-g64").get_submodule(UP)
    whole = layer.quantized.decode()
    assert layer.weight.shape == whole.shape and layer.weight.dtype == whole.dtype == torch.float32
    for read in (layer.weight.detach(), layer.weight.data.clone(), layer.weight.T.T, layer.weight.float()):
        assert type(read) is Tensor and torch.equal(read, whole)
    layer.weight.requires_grad = False
    for change in ("mul_", "__imul__", "__iadd__", "copy_"):
        for weight in (layer.weight, layer.weight.data):
            with pytest.raises(QuantError, match="cannot be changed in place"):
                getattr(weight, change)(whole)
    assert torch.equal(layer.weight.detach(), whole)


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_cast_of_a_model_changes_no_stored_number(text: str, dtype: torch.dtype) -> None:
    model = applied(text, torch.bfloat16)
    codes = {key: value.clone() for key, value in model.state_dict().items() if ".quantized." in key}
    weights = {key: value.nbytes for key, value in codes.items()}
    model.to(dtype).to("cpu", dtype)
    after = model.state_dict()
    assert {key: after[key].nbytes for key in codes} == weights
    assert all(
        torch.equal(after[key], value) and after[key].dtype == value.dtype for key, value in codes.items()
    )


def test_codes_move_to_meta_and_back_to_empty_memory_in_their_dtypes() -> None:
    weight = applied("int4-g64").get_submodule(UP).quantized
    dtypes = {name: tensor.dtype for name, tensor in weight.tensors.items()}

    def emptied() -> Any:
        return weight.to_empty(device="cpu")

    for move, device in ((lambda: weight.to("meta", torch.float16), "meta"), (emptied, "cpu")):
        tensors = move().tensors
        assert {name: tensor.dtype for name, tensor in tensors.items()} == dtypes
        assert {tensor.device.type for tensor in tensors.values()} == {device}


def test_resizing_a_quantized_embedding_raises_and_changes_nothing() -> None:
    model = applied("int8")
    before = logits(model)
    with pytest.raises(QuantError, match="resize embeddings before quantizing"):
        model.resize_token_embeddings(110)
    assert model.config.vocab_size == 100 and torch.equal(logits(model), before)
