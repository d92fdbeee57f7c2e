"""Batches, configuration and generation use one padding id for every tokenizer; predictions ignore it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bitrank.models.config import load_config
from bitrank.models.fuse import fuse_model
from bitrank.models.load import load_tokenizer, open_model
from bitrank.models.padding import padding_message, padding_of
from bitrank.process.events import read_events
from bitrank.run.adapter_init import choose_init
from bitrank.run.data import RunData, load_data
from bitrank.run.plans import make_plans, store_base
from bitrank.run.record import Record
from bitrank.run.train_run import execute
from bitrank.spec.configs import find_config
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.spec.rule_interface import AttachOptions
from bitrank.spec.run_spec import RunSpec
from bitrank_adapters import AdapterScale
from bitrank_trainer import ALONE, OBJECTIVES, evaluate
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

WORDS = (
    "the",
    "is",
    "and",
    "film",
    "story",
    "cast",
    "good",
    "lovely",
    "fine",
    "bad",
    "dull",
    "weak",
    "very",
    "not",
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
PAD, UNKNOWN, EOS = 0, 1, 3
IDS: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "pad_token_id": PAD,
    "bos_token_id": 2,
    "eos_token_id": EOS,
}
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Bert": SIZES,
    "Roberta": SIZES,
    "Llama": SIZES,
    "GPTNeoX": SIZES,
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}
TOKENIZERS: dict[str, dict[str, str]] = {
    "pad": {"pad_token": "[PAD]", "eos_token": "[SEP]", "unk_token": "[UNK]"},
    "pad is eos": {"pad_token": "[SEP]", "eos_token": "[SEP]", "unk_token": "[UNK]"},
    "eos alone": {"eos_token": "[SEP]"},
    "unk alone": {"unk_token": "[UNK]"},
    "nothing": {},
}
EXPECTED = {"pad": PAD, "pad is eos": EOS, "eos alone": EOS, "unk alone": UNKNOWN, "nothing": 0}


def write_tokenizer(folder: Path, tokens: dict[str, str], ends: bool, extra: tuple[str, ...] = ()) -> None:
    """A word tokenizer with these special tokens; ``ends`` appends [SEP] to each text."""
    words = Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    if ends:
        template = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", EOS)])
        words.post_processor = template  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **tokens)
    if extra:
        tokenizer.add_special_tokens({"pad_token": extra[0]})
    tokenizer.save_pretrained(folder)


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., str]:
    """A tiny model with strong random weights and its tokenizer, as a folder in hub format."""

    def make(
        family: str,
        tokens: str = "pad",
        ends: bool = True,
        extra: tuple[str, ...] = (),
        **config: Any,
    ) -> str:
        folder = tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}"
        torch.manual_seed(0)
        settings = getattr(transformers, f"{family}Config")(**{**IDS, **FAMILIES[family], **config})
        encoder = family in ("Bert", "Roberta")
        auto: Any = transformers.AutoModel if encoder else transformers.AutoModelForCausalLM
        model = auto.from_config(settings)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.15)
        model.save_pretrained(folder)
        write_tokenizer(folder, TOKENIZERS[tokens], ends, extra)
        return str(folder)

    return make


@pytest.fixture
def reviews(tmp_path: Path) -> str:
    """Sentences of one to twenty words; some contain the end-of-sequence token as text, or end in it."""
    draw = random.Random(3)
    rows = []
    for number in range(60):
        words = [draw.choice(WORDS) for _ in range(draw.randint(1, 20))]
        if number % 4 == 0:
            words.append("[SEP]")
        if number % 7 == 0:
            words.insert(0, "[UNK]")
        rows.append({"text": " ".join([*words, str(number % 2)]), "label": number % 2})
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def spec_for(model: str, task: str, **changes: Any) -> RunSpec:
    given = {"model": model, "dtype": "fp32", "device": "cpu", "steps": 2, "batch_size": 8, "max_length": 32}
    return make_spec(PROFILES["smoke"], "B-FP", task, {**given, **changes})


def built(spec: RunSpec, data: RunData) -> Any:
    """The model of a run before its first step, with nonzero adapters."""
    loaded = open_model(spec, len(data.task.classes), "cpu", torch.float32)
    config = find_config(spec.config)
    plans = make_plans(config, loaded)
    store_base(spec, loaded, plans.formats, choose_init(spec, plans.ranks), "cpu", torch.float32)
    options = AttachOptions(AdapterScale(), loaded.trained_modules, seed=0, total_steps=2)
    model, _ = config.rank.attach(loaded.model, plans.ranks, options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                seed = sum(name.encode())
                generator = torch.Generator().manual_seed(seed)
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    if spec.fused:
        fuse_model(model)
    return model


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("tokens", TOKENIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_do_not_depend_on_batch_mates(
    family: str,
    tokens: str,
    fused: bool,
    make_model: Callable[..., str],
    reviews: str,
) -> None:
    """The whole model of a run on a user's file: every row alone, and in batches of 400 padded tokens."""
    spec = spec_for(make_model(family, tokens), reviews, fused=fused)
    data = load_data(spec)
    model, objective = built(spec, data), OBJECTIVES[spec.kind]
    objective = objective if fused else objective.plain()
    train = data.task.splits["train"]
    rows: list[list[dict[str, float | int]]] = []
    for tokens_at_once in (1, 400):
        batches = replace(data, evaluation_tokens=tokens_at_once).batches_of(train)
        rows.append(evaluate(model, batches, objective, "cpu").rows)
    alone, together = rows
    assert len({round(row["loss"], 4) for row in alone}) > 20, "rows differ, else this proves nothing"
    for one, among in zip(alone, together, strict=True):
        assert among["prediction"] == one["prediction"]
        assert among["loss"] == pytest.approx(one["loss"], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", ["classification", "language-modelling"])
@pytest.mark.parametrize("filed", [None, PAD, 5, -1], ids=str)
@pytest.mark.parametrize("tokens", TOKENIZERS)
def test_configuration_and_batches_use_the_same_padding_id(
    tokens: str,
    filed: int | None,
    kind: str,
    make_model: Callable[..., str],
    reviews: str,
) -> None:
    """For any padding id in the model's own configuration."""
    task = reviews if kind == "classification" else "toy_articles"
    spec = spec_for(make_model("Llama", tokens, pad_token_id=filed), task)
    data = load_data(spec)
    loaded = open_model(spec, max(2, len(data.task.classes)), "cpu", torch.float32)
    assert data.task.pad_id == loaded.model.config.pad_token_id == EXPECTED[tokens]
    if kind == "language-modelling":
        assert loaded.model.generation_config.pad_token_id == EXPECTED[tokens]
    large = replace(data, evaluation_tokens=4096).batches_of(data.task.splits["train"])
    padded = next(batch for batch in large if batch["attention_mask"].min() == 0)
    assert set(padded["input_ids"][padded["attention_mask"] == 0].tolist()) == {EXPECTED[tokens]}


def test_a_padding_token_without_a_row_in_the_model_is_not_looked_up(
    make_model: Callable[..., str],
    reviews: str,
) -> None:
    """Added to the tokenizer and never to the model: its id is one too large."""
    folder = make_model("Llama", "unk alone", extra=("<fill>",))
    assert load_tokenizer(folder).pad_token_id == len(VOCABULARY)
    data = load_data(spec_for(folder, reviews))
    assert data.task.pad_id == UNKNOWN
    message = padding_message(load_tokenizer(folder), load_config(folder))
    assert message is not None
    assert message.startswith("the model cannot take the tokenizer's padding id 18: short sequences are")


def test_positions_relative_to_the_padding_id_do_not_change(
    make_model: Callable[..., str],
    reviews: str,
) -> None:
    """RoBERTa counts from its configuration's id: the id of the tokenizer would change every position."""
    folder = make_model("Roberta", "pad", pad_token_id=2)
    spec = spec_for(folder, reviews)
    loaded = open_model(spec, 2, "cpu", torch.float32)
    loaded.fill_rest()
    assert load_tokenizer(folder).pad_token_id == PAD
    assert load_data(spec).task.pad_id == loaded.model.config.pad_token_id == 2
    plain = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    ids = torch.tensor([[5, 6, 7, EOS]])
    with torch.no_grad():
        mine = loaded.model.roberta(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        torch.testing.assert_close(mine, plain(input_ids=ids).last_hidden_state, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tokens", ["eos alone", "unk alone", "nothing"])
def test_the_chosen_id_is_stated_in_the_events_of_a_run(
    tokens: str,
    make_model: Callable[..., str],
    reviews: str,
    tmp_path: Path,
) -> None:
    folder, model = tmp_path / "run", make_model("Llama", tokens)
    folder.mkdir()
    execute(spec_for(model, reviews), folder, Record(folder, ALONE), ALONE)
    (message,) = [e for e in read_events(folder / "events.jsonl") if "padding" in e.get("tags", {})]
    token = load_tokenizer(model).convert_ids_to_tokens(EXPECTED[tokens])
    assert message["message"] == message["tags"]["padding"]
    filled = f"short sequences are filled with id {EXPECTED[tokens]} ({token!r})"
    assert message["message"].startswith(f"the tokenizer has no padding token: {filled}")


@pytest.mark.parametrize("tokens", ["pad", "pad is eos"])
def test_a_tokenizer_with_a_padding_token_emits_no_notice(
    tokens: str, make_model: Callable[..., str]
) -> None:
    folder = make_model("GPT2", tokens)
    tokenizer, config = load_tokenizer(folder), load_config(folder)
    assert padding_message(tokenizer, config) is None
    assert padding_of(tokenizer, config) == tokenizer.pad_token_id
