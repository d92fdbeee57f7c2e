"""A question-answering head has the outputs start and end, and one that a checkpoint has is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bitrank.errors import UserError
from bitrank.models.load import load_tokenizer, open_model
from bitrank.models.meta_model import find_new_modules, meta_model
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec
from bitrank_adapters.attach import task_type
from peft import TaskType
from transformers import AutoModelForQuestionAnswering

KIND = "question-answering"


def spec_of(model: str) -> RunSpec:
    return make_spec(find_profile("smoke"), "B-FP", "toy_questions", {"model": model})


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that already answers questions, with the default names of its labels."""
    folder = tmp_path_factory.mktemp("answering")
    loaded = open_model(spec_of("tiny-bert"), (), "cpu", torch.float32)
    loaded.fill_rest()
    loaded.model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    loaded.model.save_pretrained(folder)
    load_tokenizer("tiny-bert").save_pretrained(folder)
    return folder


def test_a_body_gets_a_new_head_of_two_outputs_that_is_trained_whole() -> None:
    loaded = open_model(spec_of("tiny-bert"), (), "cpu", torch.float32)
    assert loaded.trained_modules == loaded.new_modules == ["qa_outputs"]
    assert loaded.model.config.id2label == {0: "start", 1: "end"}


def test_a_model_with_segments_has_no_task_type_since_pefts_class_would_drop_them() -> None:
    model = open_model(spec_of("tiny-bert"), (), "cpu", torch.float32).model
    assert model.config.type_vocab_size == 2 and task_type(model) is None
    model.config.type_vocab_size = 1
    assert task_type(model) == TaskType.QUESTION_ANS


def test_the_head_of_a_checkpoint_is_kept_and_trained_whole(answering: Path) -> None:
    loaded = open_model(spec_of(str(answering)), (), "cpu", torch.float32)
    loaded.fill_rest()
    assert loaded.trained_modules == ["qa_outputs"] and loaded.new_modules == []
    stock = AutoModelForQuestionAnswering.from_pretrained(answering)
    assert torch.equal(loaded.model.qa_outputs.weight, stock.qa_outputs.weight)


def test_a_decoder_whose_question_class_calls_its_body_otherwise_is_refused_with_another_model() -> None:
    expected = (
        r"cannot mark answers in a context: .* LlamaForQuestionAnswering expects \(transformer\.embed_tok"
    )
    with pytest.raises(UserError, match=f"{expected}.*give an encoder such as minilm"):
        open_model(spec_of("tiny-llama"), (), "cpu", torch.float32)


def test_the_model_of_a_forecast_has_the_same_head(answering: Path) -> None:
    model = meta_model(str(answering), KIND, 0, torch.float32)
    assert model.qa_outputs.weight.shape == (2, 64)
    assert find_new_modules(model, str(answering), KIND) == ["qa_outputs"]


def test_an_encoder_cannot_be_probed() -> None:
    spec = make_spec(find_profile("smoke"), "B-FP", "toy_facts", {"model": "tiny-bert"})
    with pytest.raises(UserError, match="is a bert encoder and cannot continue a prompt; give a decoder"):
        open_model(spec, (), "cpu", torch.float32)
