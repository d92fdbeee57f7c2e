"""Small random decoders with a byte-level BPE tokenizer, which GGUF can hold, and finished runs of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import small_models
from bitrank.run.record import Record
from bitrank.run.train_run import execute
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import write_spec
from bitrank_trainer import ALONE
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

ROWS = 320  # embeddings: 256 bytes, the special tokens, some merges, and rows without a token
_TEXTS = ("the film is lovely and the story is bright .", "the plot is dull and the cast is weak .")


def write(folder: Path, name: str, **values: Any) -> Path:
    """Write the model ``name`` of :data:`small_models.ARCHITECTURES` with a byte-level BPE tokenizer."""
    chosen = {"vocab_size": ROWS, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1, **values}
    small_models.write(folder, name, **chosen)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE tokenizer with a chat template into ``folder``."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS - 10,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    made.chat_template = "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"
    made.save_pretrained(folder)


def write_run(
    folder: Path, model: Path, formats: dict[str, str], ranks: dict[str, int], dtype: str = "fp32"
) -> Path:
    """Train two steps of ``model`` with this plan in ``dtype``, and return the run's folder."""
    folder.mkdir()
    plan = folder.with_suffix(".plan.json")
    plan.write_text(json.dumps({"precision": formats, "ranks": ranks}))
    given = {"model": str(model), "device": "cpu", "dtype": dtype, "plan": str(plan)}
    given |= {"steps": 2, "learning_rate": 0.05}  # the adapter must change the outputs visibly
    spec = make_spec(find_profile("smoke"), "", "toy_articles", given)
    write_spec(spec, folder / "spec.json")
    execute(spec, folder, Record(folder, ALONE), ALONE)
    return folder
