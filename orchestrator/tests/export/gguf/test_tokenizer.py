"""Byte-level BPE tokenizers are complete in GGUF; others are refused with the reason."""

from __future__ import annotations

from pathlib import Path

import bpe_models
import gguf
import pytest
import small_models
from bitrank.errors import UserError
from bitrank.export.gguf.tokenizer import PRE_TOKENIZERS, vocabulary_of
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordPiece
from transformers import AutoTokenizer, PreTrainedTokenizerFast

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = {letter: number for number, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}


def fast(splits: object, ignore_merges: bool = False, normalizer: object = None) -> PreTrainedTokenizerFast:
    made = Tokenizer(BPE(dict(BYTES), [], ignore_merges=ignore_merges))
    made.pre_tokenizer = splits  # type: ignore[assignment]
    if normalizer is not None:
        made.normalizer = normalizer  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=made)


def split_then_bytes(pattern: str) -> object:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


SPLITS = {
    "gpt-2": fast(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "smollm": fast(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    ),
    "qwen2": fast(split_then_bytes(LLAMA3.replace("{1,3}", "")), normalizer=normalizers.NFC()),
    "llama-bpe": fast(split_then_bytes(LLAMA3), ignore_merges=True),
}


def test_every_pre_tokenizer_is_recognized_by_its_rules() -> None:
    assert set(SPLITS) == set(PRE_TOKENIZERS)
    assert {vocabulary_of(tokenizer, 256).pre: name for name, tokenizer in SPLITS.items()} == {
        name: name for name in PRE_TOKENIZERS
    }


def test_tokens_merges_special_tokens_and_template_are_complete(tmp_path: Path) -> None:
    bpe_models.write_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    found = vocabulary_of(tokenizer, bpe_models.ROWS)
    known = len(tokenizer)
    assert found.tokens[:known] == tokenizer.convert_ids_to_tokens(list(range(known)))
    assert found.tokens[-1] == f"[PAD{bpe_models.ROWS - 1}]"
    assert found.types.count(int(gguf.TokenType.CONTROL)) == 2
    assert found.types.count(int(gguf.TokenType.UNUSED)) == bpe_models.ROWS - known
    assert len(found.merges) > 20 and all(len(merge.split(" ")) == 2 for merge in found.merges)
    assert (found.special["bos"], found.special["eos"], found.special["unk"]) == (0, 1, None)
    assert found.adds == {"bos": False, "eos": False}
    assert found.chat_template == tokenizer.chat_template


def _word_piece() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordPiece({"[UNK]": 0}, unk_token="[UNK]")))


def _sentence_piece(model: object) -> PreTrainedTokenizerFast:
    """As converted from ``tokenizer.model``: spaces become ▁ before the model splits the text."""
    made = Tokenizer(model)  # type: ignore[arg-type]
    made.normalizer = normalizers.Replace(" ", "▁")  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=made)


UNIGRAM = _sentence_piece(Unigram([("<unk>", 0.0), ("▁a", -1.0)], unk_id=0, byte_fallback=False))
LLAMA2 = _sentence_piece(BPE({"<unk>": 0, "▁": 1, "a": 2}, [], unk_token="<unk>", byte_fallback=True))


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (_word_piece(), "its model is WordPiece"),
        (UNIGRAM, "its model is Unigram, that of SentencePiece"),
        (LLAMA2, "its model is BPE with byte fallback, that of SentencePiece"),
        (fast(pre_tokenizers.WhitespaceSplit()), r"by rules that are none of gpt-2, .* \(WhitespaceSplit\)"),
        (fast(pre_tokenizers.ByteLevel(add_prefix_space=True)), r"none of gpt-2, .* \(ByteLevel\)"),
        (fast(split_then_bytes(LLAMA3)), r"none of gpt-2, .* \(Split, ByteLevel\)"),
        (
            fast(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizer=normalizers.Lowercase()),
            r"it normalizes texts \(Lowercase\)",
        ),
        (object(), "it has no tokenizer.json"),
    ],
)
def test_a_tokenizer_that_gguf_cannot_hold_is_refused(tokenizer: object, message: str) -> None:
    with pytest.raises(UserError, match=f"GGUF cannot hold this tokenizer: .*{message}"):
        vocabulary_of(tokenizer, 256)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused() -> None:
    with pytest.raises(UserError, match="token id 255, but the model has 200 embeddings"):
        vocabulary_of(SPLITS["gpt-2"], 200)


def test_a_word_level_tokenizer_is_refused(tmp_path: Path) -> None:
    small_models.write_tokenizer(tmp_path)
    with pytest.raises(UserError, match="its model is WordLevel"):
        vocabulary_of(AutoTokenizer.from_pretrained(tmp_path), 100)
