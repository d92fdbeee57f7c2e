"""Files of quantized models: what does not fit the model or its formats is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bitrank_quant import (
    QuantError,
    QuantLinear,
    QuantWeight,
    load_layers,
    load_quantized,
    parse_format,
    save_layers,
    save_quantized,
    to_reference,
    weight_matrices,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

FORMATS = ("int4-g64", "int4-g64-dq", "sym4-g64", "nf3", "nf4-dq", "int8", "fp8", "bf16")


def llama(inner: int = 128, layers: int = 1) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def save(folder: Path, text: str) -> LlamaForCausalLM:
    model = llama()
    for matrix in weight_matrices(model):
        if matrix.layer is not None:
            linear = model.get_submodule(matrix.name)
            model.set_submodule(matrix.name, to_reference(linear, linear.weight, text, torch.bfloat16))
    save_quantized(model, folder)
    return model


def remove(folder: Path, ending: str) -> None:
    path = folder / "quantized.safetensors"
    tensors = load_file(path)
    tensors.pop(next(key for key in tensors if key.endswith(ending)))
    save_file(tensors, path)


@pytest.mark.parametrize("text", FORMATS)
def test_a_saved_model_computes_the_same_after_loading(text: str, tmp_path: Path) -> None:
    saved, ids = save(tmp_path, text), torch.arange(5)[None]
    assert torch.equal(load_quantized(llama(), tmp_path)(ids).logits, saved(ids).logits)


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("inner", [64, 256])
def test_matrices_of_another_shape_are_refused(text: str, inner: int, tmp_path: Path) -> None:
    save(tmp_path, text)
    with pytest.raises(QuantError, match="mlp"):
        load_quantized(llama(inner), tmp_path)


def test_the_error_on_another_shape_has_both_sizes(tmp_path: Path) -> None:
    save(tmp_path, "int4-g64")
    # 64 · 128 codes of 4 bits and 128 groups with 4 bytes of scale and minimum, and twice as many.
    expected = r"in 4,608 bytes; this model's matrix of shape \(256, 64\) takes 9,216\. Build the model"
    with pytest.raises(QuantError, match=expected):
        load_quantized(llama(256), tmp_path)


def test_a_missing_part_of_a_matrix_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "int4-g64")
    remove(tmp_path, "minimum")
    with pytest.raises(QuantError, match="whose parts are codes, minimum, scale; found codes, scale"):
        load_quantized(llama(), tmp_path)


def test_a_model_with_more_matrices_than_the_file_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "int4-g64")
    with pytest.raises(QuantError, match=r"lacks 'model\.layers\.1\..*', which this model has"):
        load_quantized(llama(layers=2), tmp_path)


def test_minima_of_more_bytes_are_accepted(tmp_path: Path) -> None:
    """Updates within groups are added to minima in fp32, which a format does not count."""
    save(tmp_path, "int4-g64")
    path = tmp_path / "quantized.safetensors"
    wide = {key: t.float() if key.endswith("minimum") else t for key, t in load_file(path).items()}
    save_file(wide, path)
    loaded = load_quantized(llama(), tmp_path)
    assert loaded.model.layers[0].mlp.up_proj.quantized.minimum.dtype == torch.float32


def test_layers_with_a_missing_or_a_strange_part_are_refused(tmp_path: Path) -> None:
    def layer() -> QuantLinear:
        return QuantLinear(QuantWeight(torch.randn(8, 64), parse_format("int4-g64"), torch.float32), None)

    model = nn.ModuleDict({"a": layer()})
    save_layers({"a": layer()}, tmp_path)
    load_layers(model, tmp_path)
    remove(tmp_path, "minimum")
    with pytest.raises(QuantError, match="whose parts are codes, minimum, scale; found codes, scale"):
        load_layers(model, tmp_path)
    path = tmp_path / "quantized.safetensors"
    save_file({**load_file(path), "a.quantized.offset": torch.zeros(1)}, path)
    with pytest.raises(QuantError, match="found codes, offset, scale"):
        load_layers(model, tmp_path)
