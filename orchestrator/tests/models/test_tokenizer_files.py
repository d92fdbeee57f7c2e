"""A model folder has the vocabulary of its tokenizer, or the reason is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from bitrank.errors import UserError
from bitrank.models.load import load_tokenizer
from bitrank.models.locate import _FETCHED, weights_fingerprint
from bitrank.spec.inputs import model_digest
from small_models import write
from transformers import BartConfig, BertConfig, CanineConfig, GPT2Config, T5Config

MISSING = "has no tokenizer that can be loaded: expected tokenizer.json, or the files of a tokenizer"
# Names in ``vocab_files_names`` of transformers' tokenizers, and those that it reads for any class.
NAMES = [
    "added_tokens.json", "bpe.codes", "byte_maps.json", "dict.txt", "emoji.json", "entity_vocab.json",
    "merges.txt", "normalizer.json", "prophetnet.tokenizer", "qwen.tiktoken", "sentencepiece.bpe.model",
    "sentencepiece.model", "source.spm", "spiece.model", "spm.model", "spm_char.model", "target.spm",
    "target_vocab.json", "tekken.json", "tiktoken.model", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "vocab-src.json", "vocab-tgt.json", "vocab.json", "vocab.txt",
    "word_pronunciation.json", "word_shape.json",
]  # fmt: skip


@pytest.mark.parametrize("config", [BertConfig, T5Config, GPT2Config, BartConfig])
@pytest.mark.parametrize("named", [None, "BertTokenizer"])
def test_a_folder_without_a_vocabulary_is_refused(tmp_path: Path, config: Any, named: str | None) -> None:
    config().save_pretrained(tmp_path)
    if named is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": named}))
    with pytest.raises(UserError, match=MISSING):
        load_tokenizer(str(tmp_path))


def test_a_vocabulary_of_lines_is_enough(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film"]))
    assert load_tokenizer(str(tmp_path))("film")["input_ids"] == [2, 5, 3]


@pytest.mark.parametrize("config", [CanineConfig, lambda: T5Config(tokenizer_class="ByT5Tokenizer")])
def test_tokenizers_of_bytes_and_characters_need_no_vocabulary(tmp_path: Path, config: Any) -> None:
    config().save_pretrained(tmp_path)
    assert len(load_tokenizer(str(tmp_path))("ab", add_special_tokens=False)["input_ids"]) == 2


def changed(file: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(change(content)))

    return edit


def without_codes(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PhobertTokenizer"}))
    (folder / "vocab.txt").write_text("a 1\n")


def cut_off(folder: Path) -> None:
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text()[:200])


@pytest.mark.parametrize(
    ("edit", "reason", "may_be_newer"),
    [
        (
            changed("tokenizer.json", lambda data: {**data, "model": {**data["model"], "type": "Newer"}}),
            "Exception: data did not match any variant of untagged enum",
            True,
        ),
        (
            changed("tokenizer.json", lambda data: {k: v for k, v in data.items() if k != "added_tokens"}),
            "KeyError: 'added_tokens'",
            True,
        ),
        (changed("tokenizer_config.json", lambda _: [1]), "AttributeError: 'list' object has no", True),
        (cut_off, "", True),
        (without_codes, "TypeError: expected str, bytes or os.PathLike", False),
    ],
)
def test_an_unreadable_tokenizer_is_refused_with_the_reason(
    tmp_path: Path, edit: Callable[[Path], None], reason: str, may_be_newer: bool
) -> None:
    folder = write(tmp_path / "m", "llama")
    edit(folder)
    with pytest.raises(UserError, match=r"has no tokenizer that can be loaded \(") as error:
        load_tokenizer(str(folder))
    assert reason in str(error.value)
    guess = "; cut off, or made by a newer version of tokenizers?)"
    assert (guess in str(error.value)) is may_be_newer


@pytest.mark.parametrize("name", NAMES)
def test_every_file_of_a_tokenizer_is_fetched_and_part_of_the_digests(tmp_path: Path, name: str) -> None:
    assert any(fnmatch(name, pattern) for pattern in _FETCHED)
    folder = write(tmp_path / "m", "llama")
    (folder / name).write_text("{}")
    before = model_digest(str(folder)), weights_fingerprint(str(folder))
    (folder / name).write_text('{"a": 1}')
    after = model_digest(str(folder)), weights_fingerprint(str(folder))
    assert before[0] != after[0] and before[1] != after[1]
