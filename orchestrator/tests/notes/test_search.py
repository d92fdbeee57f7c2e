"""Search by meaning and by words, with the embedded MiniLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bitrank.notes.embed import Embedder, read_vectors, write_vectors
from bitrank.notes.note import Note
from bitrank.notes.search import search

TEXTS = {
    "a": "A higher LoRA rank lowers the loss when weights are stored in three bits.",
    "b": "The run of Joint-3 was killed because the memory of the machine was exhausted.",
    "c": "Quantizing all blocks to NF4 leaves the accuracy of sentence classification unchanged.",
}


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedder: Embedder) -> None:
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path / "cache"))


def notes() -> dict[Path, Note]:
    note = Note("verdict", "A study", "2026-11-28", "e", "t", configs=(), specs=(), links=(), body="")
    return {Path(f"{key}.md"): replace(note, body=text) for key, text in TEXTS.items()}


@pytest.mark.parametrize(
    ("question", "best"),
    [
        ("does rank help at 3 bits", "a"),
        ("which experiment ran out of RAM", "b"),
        ("is 4-bit quantization harmless for classification", "c"),
    ],
)
def test_a_question_in_other_words_finds_its_passage(embedder: Embedder, question: str, best: str) -> None:
    found = search(notes(), question, 3, embedder)
    assert found[0].path == Path(f"{best}.md") and len(found) == 3
    assert found[0].score == max(one.score for one in found)


def test_an_exact_name_is_found_by_its_word(embedder: Embedder) -> None:
    assert search(notes(), "Joint-3", 1, embedder)[0].text == TEXTS["b"]


def test_embeddings_equal_those_of_transformers(embedder: Embedder) -> None:
    import torch
    from bitrank_data import asset_dir
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(asset_dir("minilm")).eval()
    tokenizer = AutoTokenizer.from_pretrained(asset_dir("minilm"))
    texts = [*TEXTS.values(), "word " * 400]
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
    with torch.no_grad():
        hidden_BTD = model(**tokens).last_hidden_state
    mask_BT1 = tokens["attention_mask"][..., None]
    mean_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
    expected_BD = torch.nn.functional.normalize(mean_BD, dim=1).numpy()
    np.testing.assert_allclose(embedder.embed(texts), expected_BD, atol=2e-5)


class Counting:
    """Embeds by the number of letters, and counts the texts."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += texts
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)


def test_a_passage_is_embedded_once() -> None:
    counting = Counting()
    search(notes(), "first", 1, counting)
    assert len(counting.texts) == len(TEXTS) + 1
    search(notes(), "second", 1, counting)
    assert counting.texts[len(TEXTS) + 1 :] == ["second"]


@pytest.mark.parametrize("question", ["?!", "the of and", "zzzz"])
def test_a_question_without_a_known_word_is_answered_by_meaning(embedder: Embedder, question: str) -> None:
    assert len(search(notes(), question, 2, embedder)) == 2


def test_a_damaged_file_of_vectors_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "vectors.npz"
    write_vectors(path, {"a": np.ones(2, np.float32)})
    assert list(read_vectors(path)) == ["a"]
    path.write_bytes(path.read_bytes()[:40])
    assert read_vectors(path) == {}
