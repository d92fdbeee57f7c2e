"""Models that do not support a task are refused in one sentence, before they are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bitrank.errors import UserError
from bitrank.forecast.model_shapes import model_shapes
from bitrank.models.config import _set_dropout
from bitrank.models.load import Loaded, open_model
from bitrank.models.locate import weights_fingerprint
from bitrank.run.plans import make_plans
from bitrank.spec.configs import find_config
from bitrank.spec.run_spec import RunSpec
from small_models import write
from transformers import BartConfig, GPT2Config, MptConfig

CASES = {
    "t5": ("language-modelling", "is an encoder-decoder .t5. and cannot do language modelling"),
    "bart": ("language-modelling", "is an encoder-decoder .bart. and cannot do language modelling"),
    "albert": ("language-modelling", "is a albert encoder and cannot do language modelling"),
    "mamba": ("classification", "transformers has no sequence classification for mamba"),
    "mamba2": ("classification", "transformers has no sequence classification for mamba2"),
}


def opened(folder: Path, kind: str = "language-modelling") -> Loaded:
    spec = RunSpec(config="B-FP", task="toy", model=str(folder), kind=kind, fused=False, steps=1)
    return open_model(spec, 2, "cpu", torch.float32)


@pytest.mark.parametrize("name", list(CASES))
def test_task_that_an_architecture_does_not_support_is_refused_by_run_and_plan(
    name: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / name, name)
    kind, sentence = CASES[name]
    with pytest.raises(UserError, match=sentence):
        opened(folder, kind)
    with pytest.raises(UserError, match=sentence):
        model_shapes(str(folder), kind)


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("mamba", "language-modelling", "has state-space layers .mamba."),
        ("mamba2", "language-modelling", "has state-space layers .mamba2."),
        ("albert", "classification", "has no row of blocks of its own .albert."),
        (
            "xlnet",
            "classification",
            "attention whose weights are parameters outside of linear layers .xlnet:",
        ),
    ],
)
def test_model_without_matrices_to_plan_is_refused_by_run_and_plan(
    name: str, kind: str, sentence: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / name, name)
    loaded = opened(folder, kind)
    with pytest.raises(UserError, match=sentence):
        make_plans(find_config("B-Q4"), loaded)
    with pytest.raises(UserError, match=sentence):
        model_shapes(str(folder), kind)


def test_model_with_its_own_code_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "llama")
    config = {
        "model_type": "strange",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="needs Python code from its own folder"):
        opened(folder)


def test_model_without_a_tokenizer_is_refused_with_the_files_to_copy(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "llama")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match=r"has no tokenizer that can be loaded: expected tokenizer.json"):
        opened(folder)


def test_fingerprint_depends_only_on_the_loaded_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "llama")
    before = weights_fingerprint(str(folder))
    (folder / "copy.safetensors").write_bytes(b"not loaded")
    (folder / "pytorch_model.bin").write_bytes(b"not loaded")
    assert weights_fingerprint(str(folder)) == before
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert weights_fingerprint(str(folder)) != before
        path.write_bytes(content)
    assert weights_fingerprint(str(folder)) == before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_attention_heads": 0}, "zero"),
        ({"hidden_size": None}, ""),
    ],
)
def test_invalid_values_of_a_configuration_are_refused(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    folder = write(tmp_path / "llama", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError, match=f"(?i)llama.*{reason}"):
        model_shapes(str(folder), "language-modelling")


def test_labels_that_are_numbers_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "bert", "bert")
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {"0": 7, "1": 8}, "label2id": {"7": 0, "8": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    assert isinstance(opened(folder, "classification"), Loaded)


def test_dropout_is_set_where_a_configuration_has_whole_numbers_and_parts() -> None:
    config = GPT2Config(attn_pdrop=0, resid_pdrop=0.2)
    config.part = GPT2Config(embd_pdrop=0)
    _set_dropout(config, 0.1)
    rates = [config.attn_pdrop, config.resid_pdrop, config.embd_pdrop, config.part.embd_pdrop]
    assert rates == [0.1] * 4
    _set_dropout(config, None)
    assert config.attn_pdrop == 0.1


def test_a_rate_that_takes_whole_numbers_only_stays_zero_or_is_named() -> None:
    config = MptConfig(resid_pdrop=0.1)
    _set_dropout(config, 0.0)
    assert (config.attn_config.attn_pdrop, config.resid_pdrop, config.emb_pdrop) == (0, 0.0, 0.0)
    sentence = "attn_pdrop of MptAttentionConfig cannot be 0.1, .* Give --set dropout=0$"
    with pytest.raises(UserError, match=sentence):
        _set_dropout(config, 0.1)


def test_whole_layers_are_not_dropped_either() -> None:
    config = BartConfig(encoder_layerdrop=0.05, decoder_layerdrop=0.05)
    _set_dropout(config, 0.0)
    assert config.encoder_layerdrop == config.decoder_layerdrop == 0.0
    _set_dropout(config, 0.1)
    assert config.encoder_layerdrop == 0.0 and config.dropout == 0.1
