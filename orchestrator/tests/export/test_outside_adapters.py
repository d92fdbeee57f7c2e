"""An adapter of another program is merged into the weights that PEFT's own merge gives, or it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitrank.errors import UserError
from bitrank.export.finished_run import find_run
from bitrank.export.merge import merge_into_16bit
from bitrank.export.peft_adapter import _over_unquantized_base
from bitrank.export.rebuild import rebuild
from bitrank.models.locate import locate
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

WEIGHTS = "adapter_model.safetensors"


def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(locate("tiny-llama"), dtype=torch.float32)


def write_adapter(folder: Path, targets: tuple[str, ...] = ("q_proj", "up_proj"), **settings: Any) -> None:
    """A LoRA adapter of tiny-llama, made by PEFT alone, in which every trained parameter has moved."""
    torch.manual_seed(0)
    model = get_peft_model(base(), LoraConfig(r=4, target_modules=list(targets), **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(str(folder))


def merged(folder: Path) -> dict[str, torch.Tensor]:
    model, _ = merge_into_16bit(rebuild(find_run(folder, "toy_articles", "tiny-llama")))
    weights: dict[str, torch.Tensor] = model.float().state_dict()
    return weights


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lora_alpha": 2, "alpha_pattern": {"q_proj": 64}},
        {"lora_alpha": 2, "alpha_pattern": {r"model\.layers\.[01]\.mlp\..*": 64}},
        {"modules_to_save": ["norm"]},
        {"modules_to_save": ["layers.0.mlp.down_proj"]},
    ],
    ids=["plain", "alpha by suffix", "alpha by expression", "norms trained whole", "matrix trained whole"],
)
def test_merged_weights_are_those_of_peft(
    tmp_path: Path, settings: dict[str, Any], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitrank.process.compute.choose_dtype", lambda *_: dtype)
    write_adapter(tmp_path, **settings)
    found, untrained = merged(tmp_path), base().state_dict()
    expected = PeftModel.from_pretrained(base(), str(tmp_path)).merge_and_unload().state_dict()
    changed = {name for name in expected if not torch.equal(expected[name], untrained[name])}
    assert len(changed) >= 6
    for name, weight in expected.items():
        # The only difference is the rounding of the merged model to bf16.
        assert (found[name] - weight).norm() <= 0.004 * weight.norm(), name
    for name in changed:
        change = expected[name] - untrained[name]
        assert (found[name] - untrained[name] - change).norm() < 0.1 * change.norm(), name


@pytest.mark.parametrize("saved", [["norm"], ["layers.0.mlp.down_proj"]])
def test_the_audit_of_a_peft_export_is_that_of_what_peft_computes(tmp_path: Path, saved: list[str]) -> None:
    write_adapter(tmp_path, modules_to_save=saved)
    rebuilt = rebuild(find_run(tmp_path, "toy_articles", "tiny-llama"))
    model, _ = _over_unquantized_base(rebuilt, rebuilt.adapter)
    found = model.float().state_dict()
    expected = PeftModel.from_pretrained(base(), str(tmp_path)).merge_and_unload().state_dict()
    for name, weight in expected.items():
        assert (found[name] - weight).norm() <= 0.004 * weight.norm(), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, "lm_head, whose weight the base shares with another module"),
        ({"modules_to_save": ["embed_tokens"]}, "embed_tokens, whose weight the base shares"),
        ({"targets": ("q_proj", "lm_head")}, "changes lm_head, whose weight the base shares with another"),
    ],
)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_changed_module_that_the_base_ties_is_refused(
    tmp_path: Path,
    settings: dict[str, Any],
    message: str,
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bitrank.process.compute.choose_dtype", lambda *_: dtype)
    write_adapter(tmp_path, **settings)
    with pytest.raises(UserError, match=message):
        merged(tmp_path)


def test_tensor_that_the_model_lacks_is_refused_by_name(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["base_model.model.model.extra.weight"] = torch.ones(3)
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.extra\.weight of shape \[3\], but the model has no such"):
        merged(tmp_path)


def test_matrix_with_one_factor_is_refused_by_name(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    lost = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.lora_A.weight"))
    del tensors[lost]
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"one factor of model\.layers\.1\.mlp\.up_proj only"):
        merged(tmp_path)
