"""Models of the hub are loaded by the commit in the spec, also after the cache has a newer one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitrank.errors import UserError
from bitrank.models.load import load_tokenizer, open_model
from bitrank.models.locate import folder_of, locate, quiet_transformers
from bitrank.spec.inputs import check_inputs, model_digest
from bitrank.spec.run_spec import RunSpec
from small_models import write
from transformers import AutoModelForCausalLM, modeling_gguf_pytorch_utils

NAME = "someone/small"
OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with two commits of a model; ``main`` is the new one, whose weights are twice the old."""

    def double(model: Any) -> None:
        for parameter in model.parameters():
            parameter.mul_(2)

    repository = tmp_path / "hub" / "models--someone--small"
    write(repository / "snapshots" / OLD, "llama")
    write(repository / "snapshots" / NEW, "llama", double)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(NEW)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return repository / "snapshots"


def test_model_of_the_hub_is_loaded_by_the_commit_in_the_spec(hub_cache: Path) -> None:
    assert model_digest(NAME) == f"hub:{NEW}"
    spec = RunSpec(config="B-FP", task="toy", model=NAME, kind="language-modelling", fused=False, steps=1)
    for commit in (OLD, NEW):
        pinned = replace(spec, model_digest=f"hub:{commit}")
        loaded = open_model(pinned, (), "cpu", torch.float32)
        loaded.fill_rest()
        expected = AutoModelForCausalLM.from_pretrained(hub_cache / commit, dtype=torch.float32).state_dict()
        got = loaded.model.state_dict()
        assert all(torch.equal(got[key], expected[key]) for key in expected)
        assert loaded.model.config.name_or_path == NAME
        assert load_tokenizer(pinned.model_source)("a b").input_ids
        check_inputs(pinned)


def test_unpinned_model_of_the_hub_is_that_of_main(hub_cache: Path) -> None:
    assert locate(NAME) == NAME
    assert folder_of(NAME) == hub_cache / NEW


def test_commit_that_cannot_be_fetched_is_named(hub_cache: Path) -> None:
    with pytest.raises(UserError, match=f"cannot load the model '{NAME}@{'c' * 40}'"):
        locate(f"{NAME}@{'c' * 40}")


def test_converting_a_gguf_file_shows_no_bar_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    quiet_transformers()
    assert list(modeling_gguf_pytorch_utils.tqdm(range(3), desc="Converting")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
