"""Each test has its own cache folder and no network."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
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
def tar_of() -> Callable[..., bytes]:
    """Function that packs {path: content} into a compressed tar, and writes it to a path if one is given."""

    def pack(files: dict[str, bytes], path: Path | None = None) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return _kept(buffer, path)

    return pack


@pytest.fixture(scope="session")
def zip_of() -> Callable[..., bytes]:
    """As ``tar_of``, for a zip."""

    def pack(files: dict[str, bytes], path: Path | None = None) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return _kept(buffer, path)

    return pack


def _kept(buffer: io.BytesIO, path: Path | None) -> bytes:
    if path is not None:
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS.split())}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


# A busy machine exceeds any deadline of an example; no test depends on the time it takes.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
