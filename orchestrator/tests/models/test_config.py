"""The configuration for a task replaces what a checkpoint says of another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bitrank.models.config import task_config
from bitrank.models.load import open_model
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from small_models import write

PROBLEMS = ["regression", "multi_label_classification", "single_label_classification", None]


def folder_of(path: Path, problem: str | None) -> Path:
    folder = write(path, "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": problem}))
    return folder


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_classifier_has_one_label_for_each_text_whatever_its_checkpoint_was_for(
    tmp_path: Path, problem: str | None
) -> None:
    folder = folder_of(tmp_path / "m", problem)
    config, _ = task_config(str(folder), "classification", ["bad", "good"], None)
    assert config.problem_type == "single_label_classification"
    assert config.id2label == {0: "bad", 1: "good"}


def test_a_classifier_of_a_regression_checkpoint_gives_probabilities(tmp_path: Path) -> None:
    from transformers import TextClassificationPipeline

    folder = folder_of(tmp_path / "m", "regression")
    spec = make_spec(find_profile("smoke"), "B-FP", "toy_sentences", {"model": str(folder)})
    loaded = open_model(spec, ["bad", "good"], "cpu", torch.float32)
    loaded.fill_rest()
    pipeline = TextClassificationPipeline(model=loaded.model, tokenizer=loaded.tokenizer, top_k=None)
    (scores,) = pipeline(["the film"])
    assert sum(row["score"] for row in scores) == pytest.approx(1)


def test_heads_whose_outputs_are_fixed_keep_their_problem(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", "regression")
    config, _ = task_config(str(folder), "question-answering", ["start", "end"], None)
    assert config.problem_type == "regression"
