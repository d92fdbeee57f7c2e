"""Generation is greedy, deterministic, and does not depend on the batch of a prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bitrank.errors import UserError
from bitrank.models.load import load_tokenizer
from bitrank.models.locate import locate
from bitrank.run import generations
from bitrank.run.generations import continuations, generate, scored_texts
from bitrank.spec.task_kinds import Generation
from bitrank_data import IGNORED, TokenSplit
from bitrank_data.examples import TargetExample
from bitrank_data.kinds import encode_pairs
from bitrank_data.sequences import Cutting, Piece, pack
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
)

END = 3
MODELS = {"tiny-t5": AutoModelForSeq2SeqLM, "tiny-bart": AutoModelForSeq2SeqLM}
MODELS |= {"tiny-llama": AutoModelForCausalLM, "tiny-gpt2": AutoModelForCausalLM}


@pytest.fixture(scope="module", params=MODELS)
def opened(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A tiny model with weights large enough that its texts differ, and its tokenizer."""
    model = MODELS[request.param].from_pretrained(locate(request.param)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model, load_tokenizer(request.param)


def prompts(lengths: tuple[int, ...] = (3, 7, 5, 4), completion: int = 6) -> TokenSplit:
    random = np.random.default_rng(5)
    pieces = []
    for length in lengths:
        source, target = random.integers(4, 26, length), random.integers(4, 26, completion)
        pieces.append(Piece([*source, *target], [*[IGNORED] * length, *target]))
    return pack(pieces, np.zeros(0), [f"e{n}" for n in range(len(pieces))])


def by_hand(model: Any, prompt: np.ndarray, new_tokens: int) -> list[int]:
    """Argmax of the logits, one token at a time, without cache and padding."""
    ids = torch.tensor([prompt.tolist()])
    made: list[int] = []
    for _ in range(new_tokens):
        with torch.no_grad():
            if model.config.is_encoder_decoder:
                start = model.config.decoder_start_token_id
                logits = model(input_ids=ids, decoder_input_ids=torch.tensor([[start, *made]])).logits
            else:
                logits = model(input_ids=torch.cat([ids, torch.tensor([made], dtype=torch.long)], 1)).logits
        made.append(int(logits[0, -1].argmax()))
        if made[-1] == END:
            break
    return made


def test_texts_equal_the_argmax_of_each_step_in_any_batch(
    opened: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = opened
    split = prompts()
    expected = [by_hand(model, split.prompt_of(i), 6) for i in range(len(split))]
    decoded = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected]
    found = generate(model, tokenizer, split, "cpu", longest=20)
    assert found.texts == decoded and len(set(decoded)) > 1
    assert found.tokens == sum(map(len, expected)) and found.seconds > 0
    monkeypatch.setattr(generations, "_BATCH_TOKENS", 1)  # one prompt a batch, so without padding
    assert generate(model, tokenizer, split, "cpu", longest=20).texts == decoded


def test_a_text_is_no_longer_than_the_longest_reference_or_the_bound(opened: tuple[Any, Any]) -> None:
    model, tokenizer = opened
    for completion, longest, most in ((6, 20, 6), (6, 2, 2)):
        found = generate(model, tokenizer, prompts(completion=completion), "cpu", longest)
        assert max(len(text.split()) for text in found.texts) <= most
        assert found.tokens <= most * 4


CHECKPOINT = {
    "num_beams": 3,
    "do_sample": True,
    "temperature": 3.0,
    "min_length": 5,
    "min_new_tokens": 5,
    "repetition_penalty": 9.0,
    "no_repeat_ngram_size": 1,
    "length_penalty": 2.0,
    "suppress_tokens": [5, 8, 9, 12, 16],
    "begin_suppress_tokens": [4, 5, 6, 7],
    "forced_bos_token_id": 20,
    "forced_eos_token_id": 21,
    "bad_words_ids": [[10], [11], [14]],
    "sequence_bias": [[[17], 50.0]],
    "stop_strings": ["film"],
    "max_time": 0.0,
    "eos_token_id": [4, 5, 6, 7, 8, 9],
}


@pytest.mark.parametrize("name", CHECKPOINT)
def test_no_setting_of_the_checkpoint_changes_the_decoding(
    opened: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model, tokenizer = opened
    expected = generate(model, tokenizer, prompts(), "cpu", 6).texts
    changed = GenerationConfig(**model.generation_config.to_dict())
    setattr(changed, name, CHECKPOINT[name])
    monkeypatch.setattr(model, "generation_config", changed)
    assert generate(model, tokenizer, prompts(), "cpu", 6).texts == expected
    assert model.generation_config is changed


@pytest.mark.parametrize("name", CHECKPOINT)
def test_no_setting_of_the_checkpoint_changes_continuations(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(locate("tiny-llama")).eval()
    tokenizer = load_tokenizer("tiny-llama")
    expected = continuations(model, tokenizer, prompts((24, 24)), "cpu")
    changed = GenerationConfig(**model.generation_config.to_dict())
    setattr(changed, name, CHECKPOINT[name])
    monkeypatch.setattr(model, "generation_config", changed)
    assert continuations(model, tokenizer, prompts((24, 24)), "cpu") == expected


def test_targets_of_an_encoder_decoder_hold_the_first_token_that_its_checkpoint_forces() -> None:
    """So generation need not force it: training teaches it."""
    tokenizer = AutoTokenizer.from_pretrained(locate("tiny-bart"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", END)]
    )
    example = TargetExample("e0", "the film", None, "good")
    ((piece,),), _ = encode_pairs([example], tokenizer, Cutting(16, True, (2,), (END,)))
    assert next(token for token in piece.targets if token != IGNORED) == 2


def test_generation_preserves_training_mode_and_random_state(opened: tuple[Any, Any]) -> None:
    model, tokenizer = opened
    model.train()
    before = torch.get_rng_state()
    generate(model, tokenizer, prompts(), "cpu", 4)
    assert model.training and torch.equal(torch.get_rng_state(), before)
    model.eval()


def test_the_head_reads_a_contiguous_tensor(opened: tuple[Any, Any]) -> None:
    """Of another tensor (B, 1, D), a product copies the head's weight for each of the B sequences."""
    model, tokenizer = opened
    read: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _, inputs, out: read.append(inputs[0]))
    generate(model, tokenizer, prompts(), "cpu", 4)
    hook.remove()
    assert read and all(hidden_BTD.is_contiguous() for hidden_BTD in read)


def test_columns_have_prompt_reference_text_and_scores_of_each_example(opened: tuple[Any, Any]) -> None:
    model, tokenizer = opened
    split = prompts()
    samples = scored_texts(model, tokenizer, split, "cpu", Generation(("answers",)))
    names = {"text", "reference_text", "prediction_text", "exact_match", "token_f1"}
    assert set(samples.columns) == names and {len(values) for values in samples.columns.values()} == {4}
    assert samples.columns["text"][1] == tokenizer.decode(split.prompt_of(1))
    assert samples.columns["reference_text"][1] == tokenizer.decode(split.completion_of(1))
    assert set(samples.figures) == {"exact_match", "token_f1"}
    assert samples.tokens_per_second is not None and samples.tokens_per_second > 0


def test_a_table_of_positions_limits_the_texts() -> None:
    model = AutoModelForCausalLM.from_pretrained(locate("tiny-gpt2")).eval()
    tokenizer = load_tokenizer("tiny-gpt2")
    found = generate(model, tokenizer, prompts((62,), completion=10), "cpu", longest=10)
    assert found.tokens <= 2
    with pytest.raises(UserError, match="a prompt of 64 tokens leaves no position for a text"):
        generate(model, tokenizer, prompts((64,), completion=10), "cpu", longest=10)


def test_continuations_fit_a_short_table_of_positions() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=8, n_layer=1, n_head=2, n_positions=32)).eval()
    model.config.pad_token_id = 0
    tokenizer = load_tokenizer("tiny-gpt2")
    (row, *_) = continuations(model, tokenizer, prompts((24, 24)), "cpu")
    assert len(tokenizer(row["prompt"]).input_ids) <= 16
