"""Each test has its own cache folder and no network."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

WORDS = (
    "[PAD] [UNK] the is and . film story cast score plot ending scene script "
    "good lovely bright fine superb bad dull poor weak awful"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS.split())}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


# A busy machine exceeds any deadline of an example; no test depends on the time it takes.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
