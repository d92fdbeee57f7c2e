"""Cached moments of inputs: complete, read matrix by matrix, and keyed by what decides them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitrank.errors import UserError
from bitrank.models.locate import locate
from bitrank.sensitivity.input_moments import StoredMoments, gather, moments_place
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from small_models import write
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer


def spec_of(task: str, **overrides):
    return make_spec(find_profile("smoke"), "B-Q4", task, overrides)


def test_every_block_matrix_has_moments_of_its_width() -> None:
    folder = gather(spec_of("toy_articles"))
    index = json.loads((folder / "index.json").read_text())
    moments = StoredMoments(folder)
    names = [name for name in index["matrices"] if ".layers." in name]
    assert names
    for name in names:
        second_II = moments.of(name, 0).input_II
        assert second_II is not None
        assert torch.allclose(second_II, second_II.T)
        assert torch.linalg.eigvalsh(second_II.double()).min() > -1e-3 * second_II.diagonal().max()


def test_layers_with_the_same_inputs_share_one_stored_matrix() -> None:
    files = json.loads((gather(spec_of("toy_articles")) / "index.json").read_text())["matrices"]
    block = "model.layers.0.self_attn."
    assert files[f"{block}q_proj"] == files[f"{block}k_proj"] == files[f"{block}v_proj"]
    assert files[f"{block}o_proj"] != files[f"{block}q_proj"]


def test_the_columns_of_an_embedding_have_equal_weights() -> None:
    folder = gather(spec_of("toy_sentences"))
    (table, *_) = json.loads((folder / "index.json").read_text())["tables"]
    assert torch.equal(StoredMoments(folder).of(table, 5).diagonal_I, torch.ones(5))


def test_a_table_that_others_share_without_a_head_has_equal_weights(tmp_path: Path) -> None:
    """Encoder and decoder of a BART share one table; a classifier of it has no head that shares it too."""
    AutoModelForSeq2SeqLM.from_pretrained(locate("tiny-bart")).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(locate("tiny-bart"))
    end = tokenizer.convert_tokens_to_ids("[SEP]")
    closed = TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", end)])
    tokenizer.backend_tokenizer.post_processor = closed
    tokenizer.save_pretrained(tmp_path)
    moments = StoredMoments(gather(spec_of("toy_sentences", model=str(tmp_path))))
    assert torch.equal(moments.of("model.shared", 4).diagonal_I, torch.ones(4))


def test_a_matrix_without_calibration_inputs_is_named() -> None:
    with pytest.raises(UserError, match=r"no input of nowhere is known: .* quantizer=rtn"):
        StoredMoments(gather(spec_of("toy_articles"))).of("nowhere", 8)


def test_the_cache_depends_on_everything_that_changes_a_moment_and_not_on_the_seed() -> None:
    place = moments_place(spec_of("toy_articles"))
    assert moments_place(spec_of("toy_articles", seed=1, quantizer="gptq", steps=3)) == place
    assert moments_place(spec_of("toy_articles", max_length=16)) != place
    assert moments_place(spec_of("toy_sentences")) != place
    assert moments_place(spec_of("toy_articles", dtype="fp32")) != moments_place(
        spec_of("toy_articles", dtype="bf16")
    )
    assert moments_place(spec_of("toy_articles", fused=False)) == place


def test_moments_of_a_hub_model_are_those_of_the_commit_in_the_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache has two commits, and ``main`` is the newer one."""

    def double(model: Any) -> None:
        for parameter in model.parameters():
            parameter.mul_(2)

    old, new = "a" * 40, "b" * 40
    repository = tmp_path / "hub" / "models--someone--small"
    write(repository / "snapshots" / old, "llama")
    write(repository / "snapshots" / new, "llama", double)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(new)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    spec = spec_of("toy_articles", model="someone/small")
    gathered = {}
    for commit in (new, old):
        pinned = replace(spec, model_digest=f"hub:{commit}")
        folder = gather(pinned)
        assert folder == moments_place(pinned)
        name = "model.layers.0.mlp.down_proj"
        gathered[commit] = StoredMoments(folder).of(name, 0).diagonal_I
    assert moments_place(spec) == moments_place(replace(spec, model_digest=f"hub:{new}"))
    assert not torch.allclose(gathered[old], gathered[new])
