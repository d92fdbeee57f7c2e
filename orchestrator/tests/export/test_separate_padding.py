"""A merged decoder classifier predicts in transformers as in its run, also if texts end in the padding id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitrank.errors import UserError
from bitrank.export.padding import separate_padding
from bitrank.models.load import load_tokenizer
from bitrank.models.padding import use_padding
from bitrank.run.data import RunData, load_data
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank_trainer import OBJECTIVES, evaluate
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

WORDS = ("[UNK]", "[EOS]", "good", "bad", "film", "story")
EOS = 1
TEXTS = [
    f"{'film ' * (number % 5)}story {('bad', 'good')[number % 2]} {'film ' * number}" for number in range(12)
]


def write_model(folder: Path, ends: bool, **tokens: str) -> None:
    """A decoder with two classes; its tokenizer uses the end-of-sequence token to pad and to end texts."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        pad_token_id=EOS,
        eos_token_id=EOS,
        bos_token_id=None,
        num_labels=2,
        id2label={0: "0", 1: "1"},
    )
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    model.save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    if ends:
        template = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", EOS)])
        words.post_processor = template  # type: ignore[assignment]
    options = {"eos_token": "[EOS]", "pad_token": "[EOS]", **tokens}
    PreTrainedTokenizerFast(tokenizer_object=words, **options).save_pretrained(folder)


def data_for(folder: Path) -> RunData:
    rows = [json.dumps({"text": text, "label": number % 2}) for number, text in enumerate(TEXTS)]
    task = folder / "rows.jsonl"
    task.write_text("\n".join(rows) + "\n")
    given = {"model": str(folder), "device": "cpu", "dtype": "fp32", "max_length": 32}
    return load_data(make_spec(find_profile("smoke"), "B-FP", str(task), given))


def plain_predictions(folder: Path) -> dict[str, list[float]]:
    """By text, the logits of plain transformers, all texts in one padded batch."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return dict(zip(TEXTS, logits.tolist(), strict=True))


def run_losses(model: Any, data: RunData) -> list[float]:
    found = evaluate(
        model, data.batches_of(data.task.splits["train"]), OBJECTIVES["classification"].plain(), "cpu"
    )
    return [float(row["loss"]) for row in found.rows]


def plain_losses(folder: Path, data: RunData) -> list[float]:
    by_ids = {}
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    for text, logits in plain_predictions(folder).items():
        by_ids[tuple(tokenizer(text)["input_ids"])] = torch.tensor(logits)
    split = data.task.splits["train"]
    return [
        float(
            torch.nn.functional.cross_entropy(
                by_ids[tuple(split.sequence(row).tolist())], torch.tensor(int(label))
            )
        )
        for row, label in enumerate(split.labels_N)
    ]


def test_saved_classifier_predicts_in_plain_transformers_as_in_its_run(tmp_path: Path) -> None:
    write_model(tmp_path, ends=True, unk_token="[UNK]")
    data, tokenizer = data_for(tmp_path), load_tokenizer(str(tmp_path))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    use_padding(model, data.task.pad_id)
    expected = run_losses(model, data)
    assert plain_losses(tmp_path, data) != pytest.approx(expected, abs=1e-3), "else there is nothing to mend"
    message = separate_padding(model, tokenizer, data.task)
    assert message is not None
    assert message.startswith("texts end in the padding token '[EOS]': saved with '[UNK]'")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert plain_losses(tmp_path, data) == pytest.approx(expected, abs=1e-5)


def test_the_padding_token_does_not_change_if_no_text_ends_in_it(tmp_path: Path) -> None:
    write_model(tmp_path, ends=False, unk_token="[UNK]")
    data, tokenizer = data_for(tmp_path), load_tokenizer(str(tmp_path))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert separate_padding(model, tokenizer, data.task) is None
    assert (model.config.pad_token_id, tokenizer.pad_token) == (EOS, "[EOS]")


def test_classifier_without_another_special_token_is_rejected(tmp_path: Path) -> None:
    write_model(tmp_path, ends=True)
    data, tokenizer = data_for(tmp_path), load_tokenizer(str(tmp_path))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"texts end in the padding token '\[EOS\]', .* no other special token"
    ):
        separate_padding(model, tokenizer, data.task)
