"""Loaded weights equal those of ``from_pretrained`` for every architecture.

Files that do not match the model are loaded in the same way as by ``from_pretrained``, or refused.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from bitrank.errors import UserError
from bitrank.models.load import Loaded, open_model
from bitrank.models.stored_tensors import stored_tensors
from bitrank.spec.run_spec import RunSpec
from safetensors.torch import load_file, save_file
from small_models import CLASSIFIERS, DECODERS, write, write_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

CLASSES = ("bad", "good")
LM = "language-modelling"


def opened(
    folder: Path, kind: str, classes: tuple[str, ...] = CLASSES, dtype: torch.dtype = torch.bfloat16
) -> Loaded:
    spec = RunSpec(config="B-FP", task="toy", model=str(folder), kind=kind, seed=3, fused=False, steps=1)
    return open_model(spec, classes if kind == "classification" else (), "cpu", dtype)


def reference(folder: Path, kind: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    torch.manual_seed(3)
    if kind == LM:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=dtype, num_labels=2, ignore_mismatched_sizes=True
    )


def assert_equal(loaded: Loaded, expected: Any) -> None:
    assert all(parameter.is_meta for parameter in loaded.model.parameters())
    loaded.fill_rest()
    got, want = loaded.model.state_dict(), expected.state_dict()
    assert got.keys() == want.keys()
    different = [
        key for key in want if not torch.equal(got[key], want[key]) or got[key].dtype != want[key].dtype
    ]
    assert different == []
    buffers = dict(expected.named_buffers())
    assert [
        name for name, value in loaded.model.named_buffers() if not torch.equal(value, buffers[name])
    ] == []
    assert loaded.parameters == sum(parameter.numel() for parameter in expected.parameters())


def change_tensors(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("name", DECODERS)
def test_language_model_equals_from_pretrained(name: str, tmp_path: Path) -> None:
    loaded = opened(write(tmp_path / name, name), LM)
    assert (loaded.trained_modules, loaded.new_modules) == ([], [])
    assert_equal(loaded, reference(tmp_path / name, LM))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_and_its_new_modules_equal_those_of_from_pretrained(name: str, tmp_path: Path) -> None:
    loaded = opened(write(tmp_path / name, name), "classification")
    torch.manual_seed(3)
    expected, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / name, dtype=torch.bfloat16, num_labels=2, output_loading_info=True
    )
    assert set(loaded.new_modules) == {key.rpartition(".")[0] for key in info["missing_keys"]}
    assert loaded.new_modules
    assert any(message.endswith(", ".join(loaded.new_modules)) for message in loaded.notices)
    assert_equal(loaded, expected)


@pytest.mark.parametrize("name", ["gptneox", "gpt2", "llama_tied", "mixtral", "phi3"])
def test_modules_filled_one_by_one_equal_from_pretrained(name: str, tmp_path: Path) -> None:
    loaded = opened(write(tmp_path / name, name), LM)
    expected = reference(tmp_path / name, LM)
    for module in reversed([part for part, _ in loaded.model.named_modules() if part]):
        loaded.fill(module)
    got, want = dict(loaded.model.named_parameters()), dict(expected.named_parameters())
    assert [key for key in want if not torch.equal(got[key], want[key])] == []


def test_files_in_another_dtype_are_cast_as_from_pretrained_casts_them(tmp_path: Path) -> None:
    loaded = opened(write(tmp_path / "m", "llama"), LM)
    assert loaded.filed("model.layers.0.mlp.up_proj") is torch.float32
    assert_equal(loaded, reference(tmp_path / "m", LM))


def test_head_stored_with_other_values_than_its_embedding_is_not_tied(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "llama", tie_word_embeddings=False)
    change_config(folder, tie_word_embeddings=True)
    loaded = opened(folder, LM)
    assert any("lm_head.weight" in message for message in loaded.notices)
    assert_equal(loaded, reference(folder, LM))
    assert not torch.equal(loaded.model.lm_head.weight, loaded.model.model.embed_tokens.weight)


def test_tied_head_stored_twice_with_equal_values_is_tied(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "llama_tied")
    change_tensors(folder, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"].clone()})
    loaded = opened(folder, LM)
    assert_equal(loaded, reference(folder, LM))
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight


def test_embedding_stored_only_under_its_heads_name_is_tied(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "llama_tied")
    change_tensors(
        folder, lambda t: {key.replace("model.embed_tokens", "lm_head"): value for key, value in t.items()}
    )
    loaded = opened(folder, LM)
    assert loaded.filed("model.embed_tokens") is torch.float32
    assert_equal(loaded, reference(folder, LM))


def test_sharded_checkpoint_equals_from_pretrained(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "llama")
    reference(folder, LM, torch.float32).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "sharded" / name).write_bytes((folder / name).read_bytes())
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert_equal(opened(tmp_path / "sharded", LM), reference(folder, LM))


def test_single_file_takes_precedence_over_an_index_as_in_from_pretrained(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "llama")
    tensors = {key: torch.zeros_like(value) for key, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = opened(folder, LM)
    assert_equal(loaded, reference(folder, LM))
    assert loaded.model.model.embed_tokens.weight.any()


@pytest.mark.parametrize(
    ("values", "parameter_part"), [({"vocab_size": 20}, "embed_tokens"), ({"intermediate_size": 48}, "mlp")]
)
def test_weights_of_another_shape_than_the_config_are_refused_by_name(
    values: dict[str, int], parameter_part: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "m", "llama")
    change_config(folder, **values)
    with pytest.raises(
        UserError,
        match=rf"do not fit its config.json: .*{parameter_part}.*\[.*\] there and \[.*\] by its config",
    ):
        opened(folder, LM)
    with pytest.raises(RuntimeError):
        reference(folder, LM)


@pytest.mark.parametrize(
    ("name", "missing", "kind"),
    [
        ("llama", "model.norm.weight", LM),
        ("llama", "lm_head.weight", LM),
        ("llama", "model.layers.1.mlp.up_proj.weight", LM),
        ("llama", "model.norm.weight", "classification"),
        ("bert", "encoder.layer.1.output.dense.bias", "classification"),
        ("bert", "embeddings.LayerNorm.weight", "classification"),
    ],
)
def test_missing_part_of_a_model_is_refused_by_name(
    name: str, missing: str, kind: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "m", name)
    change_tensors(folder, lambda t: {key: value for key, value in t.items() if key != missing})
    with pytest.raises(UserError, match=rf"lack .*{missing}"):
        opened(folder, kind)


def test_encoder_without_its_language_model_head_is_refused_with_models_that_have_one(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "bert")  # a classifier, as most downloaded encoders are
    with pytest.raises(UserError, match=r"cannot predict a masked token: .* give an encoder with its lang"):
        opened(folder, "masked-probing")


def test_missing_pooler_of_an_encoder_is_new_and_trained(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "bert")
    change_tensors(folder, lambda t: {key: value for key, value in t.items() if "pooler" not in key})
    loaded = opened(folder, "classification")
    assert loaded.new_modules == loaded.trained_modules == ["bert.pooler.dense", "classifier"]
    assert_equal(loaded, reference(folder, "classification"))


def test_layers_beyond_the_config_are_named_as_unused(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "llama")
    change_config(folder, num_hidden_layers=1)
    loaded = opened(folder, LM)
    assert any("not used" in message and "model.layers.1" in message for message in loaded.notices)
    assert_equal(loaded, reference(folder, LM))


def test_head_for_another_number_of_classes_is_newly_initialized(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "bert", num_labels=3)
    loaded = opened(folder, "classification")
    assert loaded.new_modules == loaded.trained_modules == ["classifier"]
    assert_equal(loaded, reference(folder, "classification"))
    assert loaded.model.classifier.weight.shape == (2, 32)


@pytest.mark.parametrize("name", ["bert", "electra", "bart"])
def test_stored_head_is_kept_and_trained_if_its_labels_match_the_data(name: str, tmp_path: Path) -> None:
    folder = (
        write(tmp_path / "m", name, **_labels("Bad", "GOOD"))
        if name != "bart"
        else _bart_classifier(tmp_path / "m")
    )
    loaded = opened(folder, "classification")
    assert loaded.new_modules == []
    assert (
        loaded.trained_modules
        == {
            "bert": ["classifier"],
            "electra": ["classifier.dense", "classifier.out_proj"],
            "bart": ["classification_head.dense", "classification_head.out_proj"],
        }[name]
    )
    assert_equal(loaded, reference(folder, "classification"))


def test_head_with_labels_in_another_order_has_its_rows_reordered(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "bert", **_labels("GOOD", "BAD"))
    loaded = opened(folder, "classification")
    loaded.fill_rest()
    stored = load_file(folder / "model.safetensors")
    assert torch.equal(loaded.model.classifier.weight, stored["classifier.weight"][[1, 0]].bfloat16())
    assert torch.equal(loaded.model.classifier.bias, stored["classifier.bias"][[1, 0]].bfloat16())
    assert loaded.trained_modules == ["classifier"]
    assert loaded.new_modules == []
    assert any("order" in message and "GOOD, BAD" in message for message in loaded.notices)


def test_head_with_other_labels_is_newly_initialized_with_a_notice(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "bert", **_labels("spam", "ham"))
    loaded = opened(folder, "classification")
    loaded.fill_rest()
    stored = load_file(folder / "model.safetensors")
    assert loaded.new_modules == loaded.trained_modules == ["classifier"]
    assert not torch.equal(loaded.model.classifier.weight, stored["classifier.weight"].bfloat16())
    assert any("spam, ham" in message and "bad, good" in message for message in loaded.notices)


def test_config_has_the_labels_of_the_data(tmp_path: Path) -> None:
    config = opened(write(tmp_path / "m", "bert"), "classification").model.config
    assert config.id2label == {0: "bad", 1: "good"}
    assert config.label2id == {"bad": 0, "good": 1}


def _labels(*names: str) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }


def _bart_classifier(folder: Path) -> Path:
    from small_models import ARCHITECTURES, write_tokenizer
    from transformers import BartConfig, BartForSequenceClassification

    BartForSequenceClassification(
        BartConfig(**ARCHITECTURES["bart"].values, **_labels("bad", "good"))
    ).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize(
    ("method", "remedy"),
    [
        ("gptq", r"give the original in 16 or 32 bits \(transformers cannot dequantize this method\)"),
        ("bitsandbytes", r"call model\.dequantize\(\) and save it"),
        ("fp8", r"quantization_config=FineGrainedFP8Config\(dequantize=True\)"),
        ("mxfp4", r"quantization_config=Mxfp4Config\(dequantize=True\)"),
        ("of my own", r"transformers does not know this method"),
    ],
)
def test_quantization_config_is_refused_with_its_method_and_the_way_out(
    tmp_path: Path, method: str, remedy: str
) -> None:
    folder = write(tmp_path / "m", "llama")
    change_config(folder, quantization_config={"quant_method": method})
    with pytest.raises(UserError, match=rf"quantized already.*quant_method {method}; .*{remedy}"):
        opened(folder, LM)


def _in_4_bits(folder: Path) -> None:
    """Quantize the model in ``folder`` as its publisher would, by bitsandbytes."""
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map="cpu")
    model.save_pretrained(folder)


def _in_fp8(folder: Path) -> None:
    """Quantize the linear matrices in ``folder`` to float8 with one scale for each block of 32 × 32."""

    def quantize(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for key in [key for key in tensors if key.endswith("proj.weight")]:
            weight_OI = tensors[key]
            scale = weight_OI.abs().max() / 448  # the largest number of the format
            tensors[key] = (weight_OI / scale).to(torch.float8_e4m3fn)
            blocks = [-(-size // 32) for size in weight_OI.shape]
            tensors[key.replace("weight", "weight_scale_inv")] = scale.expand(*blocks).contiguous()
        return tensors

    change_tensors(folder, quantize)
    stored = {"quant_method": "fp8", "weight_block_size": [32, 32], "modules_to_not_convert": ["lm_head"]}
    change_config(folder, quantization_config=stored)


def _dequantized(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, device_map="cpu").dequantize()


def _dequantized_fp8(folder: Path) -> Any:
    from transformers import FineGrainedFP8Config

    how = FineGrainedFP8Config(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=how)


@pytest.mark.parametrize(
    ("quantize", "dequantize", "error"),
    [(_in_4_bits, _dequantized, 0.25), (_in_fp8, _dequantized_fp8, 0.04)],
    ids=["bitsandbytes", "fp8"],
)
def test_the_way_out_of_a_quantized_checkpoint_writes_one_that_loads(
    tmp_path: Path, quantize: Any, dequantize: Any, error: float
) -> None:
    original = AutoModelForCausalLM.from_pretrained(write(tmp_path / "m", "llama")).state_dict()
    quantize(tmp_path / "m")
    with pytest.raises(UserError, match="save_original_format=False"):
        opened(tmp_path / "m", LM)
    model = dequantize(tmp_path / "m")
    model.save_pretrained(tmp_path / "out", save_original_format=False)
    write_tokenizer(tmp_path / "out")
    loaded = opened(tmp_path / "out", LM, dtype=torch.float32)
    loaded.fill_rest()
    key = "model.layers.0.mlp.up_proj.weight"
    found = loaded.model.state_dict()[key]
    assert torch.equal(found, model.state_dict()[key].float())
    assert 0 < float((found - original[key]).norm()) < error * float(original[key].norm())


@pytest.mark.parametrize("beside", ["qzeros", "weight_scale_inv", "weight.absmax", "weight._scale"])
def test_scales_beside_a_weight_are_refused_by_name(beside: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "llama")
    key = f"model.layers.0.mlp.up_proj.{beside}"
    change_tensors(folder, lambda t: {**t, key: torch.ones(4)})
    with pytest.raises(UserError, match=rf"quantized already .*{key}"):
        opened(folder, LM)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_weights_stored_as_codes_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "llama")
    key = "model.layers.0.mlp.up_proj.weight"
    change_tensors(folder, lambda t: {**t, key: t[key].to(dtype)})
    with pytest.raises(UserError, match=rf"quantized already: {key} is stored as {str(dtype)[6:]}"):
        opened(folder, LM)


def test_folder_with_only_pickled_weights_is_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "llama")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin.*safetensors only.*save_pretrained"):
        opened(folder, LM)


def test_folder_without_weights_and_a_lost_shard_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "llama")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no weights: expected model.safetensors"):
        opened(folder, LM)
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model-00001-of-00002.safetensors"):
        opened(folder, LM)


@pytest.mark.parametrize(
    "index",
    [{}, [], {"weight_map": {"a": "b"}}, {"metadata": None, "weight_map": {"a": "b"}}, {"metadata": {}}],
)
def test_an_index_of_another_form_is_refused_with_its_name(tmp_path: Path, index: Any) -> None:
    folder = write(tmp_path / "m", "llama")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"m/model.safetensors.index.json is no index of safetensors files"):
        opened(folder, LM)


def test_folder_with_an_adapter_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "llama")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds a PEFT adapter"):
        opened(folder, LM)


@pytest.mark.parametrize("kept", [4, 200, -8])
def test_weights_cut_short_are_refused_by_name(kept: int, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "llama")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"model\.safetensors is no whole safetensors file .* again"):
        opened(folder, LM)


@pytest.mark.parametrize("part", [2**20, 64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name_when_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, part: int
) -> None:
    monkeypatch.setattr("bitrank.models.stored_tensors.PART", part)
    name = "model.layers.1.mlp.up_proj.weight"
    folder = write(tmp_path / "m", "llama")

    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[name][-1, -1] = value
        return tensors

    change_tensors(folder, spoil)
    loaded = opened(folder, LM)
    loaded.fill("model.layers.0.mlp.up_proj")
    with pytest.raises(UserError, match=rf"model\.safetensors: {name} holds NaN or infinite numbers"):
        loaded.fill_rest()


def test_weights_beyond_the_range_of_the_compute_dtype_are_refused_by_name(tmp_path: Path) -> None:
    def enlarge(model: Any) -> None:
        model.model.norm.weight[0] = 1e5

    folder = write(tmp_path / "m", "llama", enlarge)
    opened(folder, LM).fill_rest()
    with pytest.raises(UserError, match=r"model\.norm\.weight holds numbers up to 1e\+05.*float16 ends at"):
        opened(folder, LM, dtype=torch.float16).fill_rest()


def test_a_buffer_may_hold_infinities(tmp_path: Path) -> None:
    mask = torch.full((2, 2), -math.inf)
    save_file({"mask": mask}, tmp_path / "model.safetensors")
    ((_, stored),) = stored_tensors([tmp_path / "model.safetensors"])
    assert torch.equal(stored[:], mask)
