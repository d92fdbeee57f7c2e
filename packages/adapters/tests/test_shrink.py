"""Physically removed ranks: same logits, cut parameters, exact resumption, plain LoRA files."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from bitrank_adapters import (
    AdaLora,
    AdapterError,
    AdapterScale,
    ShrinkingRanks,
    adapted,
    attach_adalora,
    attach_lora,
    fuse,
    read_adapter,
)
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from torch import nn

STEPS = 40


CONSTANT = AdapterScale(2.0, "constant")


def shrinking(make, blocks, name="llama", scale=CONSTANT, heads=()):
    model = attach_adalora(
        make(name), blocks[name], AdaLora(6, 2, every=2), total_steps=STEPS, seed=1, scale=scale, heads=heads
    )
    source = torch.Generator().manual_seed(2)
    for _, layer in adapted(model):  # PEFT's initialization is too close to zero to detect a wrong factor
        for factors in (layer.lora_A, layer.lora_B, layer.lora_E):
            factors["default"].data.normal_(0, 0.3, generator=source)
    return model, ShrinkingRanks(model)


def train(model, hook, ids, first: int, last: int, optimizer=None) -> torch.optim.Optimizer:
    """Plain SGD without optimizer state, so the test depends on the parameters only."""
    for step in range(first, last + 1):
        logits = model(input_ids=ids.roll(step, dims=1)).logits
        ((logits.float() - 1).square().mean() + hook.penalty()).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter -= 0.05 * parameter.grad
        hook.after_step(step)
        model.zero_grad()


def logits_of(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def mask_pruned_triplets(model, kept: dict[str, list[bool]]) -> None:
    """Mask pruned triplets like PEFT, in place."""
    with torch.no_grad():
        for name, layer in adapted(model):
            layer.lora_E["default"].mul_(torch.tensor(kept[name])[:, None])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_shrinking_keeps_the_output_and_reduces_parameters(make, blocks, ids, name: str, fused: bool) -> None:
    model, hook = shrinking(make, blocks, name)
    if fused:
        fuse(model)
    train(model, hook, ids, 1, hook.freeze_step - 1)
    assert hook.resized() is None
    recorded = {}
    shrink = hook._shrink

    def recording_shrink(pattern):
        recorded["before"], recorded["size"] = logits_of(model, ids), trainable_numbers(model)
        shrink(pattern)
        recorded["after"], recorded["left"] = logits_of(model, ids), trainable_numbers(model)

    hook._shrink = recording_shrink
    train(model, hook, ids, hook.freeze_step, hook.freeze_step)
    assert torch.allclose(recorded["after"], recorded["before"], atol=1e-5)
    with model.disable_adapter():
        effect = (logits_of(model, ids) - recorded["before"]).abs().max()
    assert effect > 200 * (recorded["after"] - recorded["before"]).abs().max()
    ranks = hook.ranks()
    assert set(ranks) == set(blocks[name]) and sum(ranks.values()) == hook.budget
    layers = dict(adapted(model))
    assert {n: layer.lora_A["default"].shape[0] for n, layer in layers.items()} == {
        n: r for n, r in ranks.items() if r
    }
    assert (
        recorded["left"]
        == sum(r * (layers[n].in_features + layers[n].out_features + 1) for n, r in ranks.items() if r)
        < recorded["size"] / 2
    )


def trainable_numbers(model) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_resized_reports_each_cut_once(make, blocks, ids) -> None:
    model, hook = shrinking(make, blocks)
    before = {}
    shrink = hook._shrink

    def recording_shrink(pattern):
        before.update({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})
        shrink(pattern)

    hook._shrink = recording_shrink
    train(model, hook, ids, 1, hook.freeze_step)
    resized, now = hook.resized(), dict(model.named_parameters())
    assert hook.resized() is None
    assert set(resized) == set(before)
    gone = {name for name, (_, kept) in resized.items() if not len(kept)}
    assert gone == set(before) - set(now)
    for name in set(resized) - gone:
        axis, kept = resized[name]
        assert torch.equal(now[name], before[name].index_select(axis, kept))


@pytest.mark.parametrize("fused", [False, True])
def test_matrix_of_rank_zero_loses_its_adapter(make, blocks, ids, fused: bool) -> None:
    model, hook = shrinking(make, blocks)
    if fused:
        fuse(model)
    train(model, hook, ids, 1, hook.freeze_step - 1)
    pattern = {f"{name}.lora_E.default": [False] * 6 for name in blocks["llama"]}
    pattern[f"{blocks['llama'][0]}.lora_E.default"] = [True, False, True, False, False, False]
    mask_pruned_triplets(model, {key.removesuffix(".lora_E.default"): mask for key, mask in pattern.items()})
    before = logits_of(model, ids)
    hook._shrink(pattern)
    assert torch.allclose(logits_of(model, ids), before, atol=1e-5)
    assert [name for name, _ in adapted(model)] == [blocks["llama"][0]]
    assert type(model.base_model.model.get_submodule(blocks["llama"][1])) is nn.Linear
    assert hook.ranks() == {name: 2 if name == blocks["llama"][0] else 0 for name in blocks["llama"]}
    assert torch.isfinite(hook.penalty())


@pytest.mark.parametrize("at", [10, 24, 30])
def test_restored_state_continues_bit_identically(make, blocks, ids, at: int) -> None:
    straight, straight_hook = shrinking(make, blocks)
    train(straight, straight_hook, ids, 1, STEPS)
    first, first_hook = shrinking(make, blocks)
    train(first, first_hook, ids, 1, at)
    second, second_hook = shrinking(make, blocks)
    second_hook.restore(*first_hook.state())
    assert (second_hook.resized() is not None) == (at >= first_hook.freeze_step)
    second.load_state_dict(first.state_dict())
    train(second, second_hook, ids, at + 1, STEPS)
    assert second_hook.ranks() == straight_hook.ranks()
    for (name, a), (other, b) in zip(straight.named_parameters(), second.named_parameters(), strict=True):
        assert name == other and torch.equal(a, b), name


@pytest.mark.parametrize("steps", [20, STEPS])
@pytest.mark.parametrize(("name", "heads"), [("bert", ["classifier"]), ("gpt2", []), ("llama", [])])
def test_saved_adapter_loads_in_stock_peft(
    make, blocks, ids, tmp_path, name: str, heads: list[str], steps: int
) -> None:
    """Before the freeze and after it, the file is plain LoRA with one rank per matrix."""
    model, hook = shrinking(make, blocks, name, heads=heads)
    train(model, hook, ids, 1, steps)
    with hook.as_stored():
        want, ranks = logits_of(model, ids), hook.ranks()
    hook.save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    loaded = PeftModel.from_pretrained(make(name), str(tmp_path))
    assert torch.allclose(logits_of(loaded, ids), want, atol=1e-5)
    assert {n: layer.r["default"] for n, layer in adapted(loaded)} == {n: r for n, r in ranks.items() if r}
    if steps == STEPS:
        assert {layer.scaling["default"] for _, layer in adapted(loaded)} == {2.0}


@pytest.mark.parametrize("steps", [20, STEPS])
def test_read_adapter_gives_the_weight_update(make, blocks, ids, tmp_path, steps: int) -> None:
    model, hook = shrinking(make, blocks, "bert", scale=AdapterScale(3.0, "constant"), heads=["classifier"])
    train(model, hook, ids, 1, steps)
    with hook.as_stored():
        wanted = {name: layer.get_delta_weight("default").detach() for name, layer in adapted(model)}
        classifier = (
            dict(model.named_parameters())["base_model.model.classifier.modules_to_save.default.weight"]
            .detach()
            .clone()
        )
    hook.save(tmp_path)
    saved = read_adapter(tmp_path)
    assert set(saved.parts) == {name for name, rank in hook.ranks().items() if rank}
    for name, delta_OI in wanted.items():
        found_OI = saved.parts[name].product() if name in saved.parts else torch.zeros_like(delta_OI)
        assert torch.allclose(found_OI, delta_OI, atol=1e-6), name
    assert torch.equal(saved.whole["classifier.weight"], classifier)


def test_read_adapter_supports_plain_lora(make, blocks, tmp_path) -> None:
    model = attach_lora(
        make("gpt2"),
        {name: 2 + n for n, name in enumerate(blocks["gpt2"])},
        scale=AdapterScale(3.0, "constant"),
    )
    for _, layer in adapted(model):
        nn.init.normal_(layer.lora_B["default"].weight)
    model.save_pretrained(str(tmp_path))
    parts = read_adapter(tmp_path).parts
    for name, layer in adapted(model):
        assert torch.allclose(
            parts[name].product(),
            3.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight,
            atol=1e-5,
        )


def test_read_adapter_matches_patterns_of_alpha_as_peft_does(make, tmp_path) -> None:
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["c_attn", "c_proj"],
        alpha_pattern={"c_attn": 64, r"h\.\d\.mlp.*": 2},
    )
    model = get_peft_model(make("gpt2"), config)
    for _, layer in adapted(model):
        nn.init.normal_(layer.lora_B["default"].weight)
    model.save_pretrained(str(tmp_path))
    parts = read_adapter(tmp_path).parts
    scales = set()
    for name, layer in adapted(model):
        update_OI = layer.get_delta_weight("default").T  # Conv1D stores (in, out)
        assert torch.allclose(parts[name].product(), update_OI, atol=1e-5), name
        scales.add(parts[name].scale)
    assert scales == {0.5, 2.0, 16.0}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"target_modules": ["c_attn", "wte"]}, "lora_embedding_A"),
        ({"bias": "lora_only"}, "with bias"),
        ({"init_lora_weights": "pissa"}, "with init_lora_weights=pissa"),
        ({"init_lora_weights": "olora"}, "with init_lora_weights=olora"),
    ],
)
def test_adapter_with_other_tensors_is_refused_by_name(make, tmp_path, change: dict, reason: str) -> None:
    config = LoraConfig(**{"r": 4, "target_modules": ["c_attn"], **change})
    get_peft_model(make("gpt2"), config).save_pretrained(str(tmp_path))
    with pytest.raises(AdapterError, match=reason):
        read_adapter(tmp_path)


SPECIAL = {
    "use_dora": True,
    "use_rslora": True,
    "bias": "all",
    "lora_bias": True,
    "layer_replication": [[0, 2]],
    "target_parameters": ["mlp.weight"],
    "trainable_token_indices": [3],
    "corda_config": {"corda_method": "ipm"},
    "alora_invocation_tokens": [5, 6],
    "use_qalora": True,
    "use_bdlora": {"nblocks": 2},
    "kasa_config": {"beta": 0.1},
    "monteclora_config": {"num_samples": 4},
    "arrow_config": {"top_k": 3},
}
# Fields of PEFT 0.21.2 that leave an update the product of its factors, or that `read_adapter` follows.
PLAIN = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "runtime_config"),
    *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"),
    *("init_lora_weights", "loftq_config", "eva_config", "lora_ga_config", "lora_dropout", "velora_config"),
    *("fan_in_fan_out", "megatron_config", "megatron_core", "qalora_group_size", "ensure_weight_tying"),
    *("init_r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"),
}


@pytest.mark.parametrize("key", SPECIAL)
def test_adapter_with_another_formula_is_refused_by_its_setting(make, tmp_path, key: str) -> None:
    get_peft_model(make("gpt2"), LoraConfig(r=4, target_modules=["c_attn"])).save_pretrained(str(tmp_path))
    assert read_adapter(tmp_path).parts
    place = tmp_path / "adapter_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {key: SPECIAL[key]}))
    with pytest.raises(AdapterError, match=f"LORA with {key} that cannot be folded"):
        read_adapter(tmp_path)


def test_every_setting_of_the_installed_peft_is_known_to_change_the_formula_or_not() -> None:
    fields = {field.name for kind in (LoraConfig, AdaLoraConfig) for field in dataclasses.fields(kind)}
    assert fields <= PLAIN | SPECIAL.keys(), "decide whether read_adapter must refuse the new ones"


def test_folder_without_adapter_raises_adapter_error(tmp_path) -> None:
    with pytest.raises(AdapterError, match="holds no adapter: expected adapter_config"):
        read_adapter(tmp_path)
