"""Small T5 and BART, pretrained here by text infilling, and the task that `bitrank` adapts them to.

    python benchmarks/encoder_decoders.py FOLDER [--models bart,t5] [--steps 2600]

No package with pretrained English weights of either architecture was found. So FOLDER/bart and FOLDER/t5
are trained on sentences of the Brown corpus: spans of words are replaced by one mask each, and the model
writes the whole sentence (text infilling; Lewis et al. 2020, section 2.2). In the first steps it copies
words in random order instead, which it learns in some hundred steps. FOLDER/restore has sentences of
Wikipedia articles in the same form, as files with `source` and `target`: other texts, split by article. A
model that is there already is not trained again. docs/results/encoder-decoders.md has the commands that
follow.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from bitrank_data import open_task
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    Adafactor,
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    get_cosine_schedule_with_warmup,
)

VOCABULARY = 2048
PAD, BOS, EOS, UNKNOWN, MASK = range(5)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
WORDS = range(5, 19)  # sentences of other lengths are left out
SHARE, SPAN = 0.3, 3  # of the words masked, and words of the longest span
BATCH = 48
COUNTS = {"train": 4000, "validation": 300, "test": 800}
LONGEST = 12  # words to copy
IGNORED = -100


def t5() -> PreTrainedModel:
    """An untrained T5 of 2 + 2 layers, 192 wide."""
    sizes = {"d_model": 192, "d_kv": 48, "d_ff": 768, "num_layers": 2, "num_heads": 4}
    ids = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": PAD}
    return T5ForConditionalGeneration(T5Config(**ids, **sizes, dropout_rate=0.0))


def bart() -> PreTrainedModel:
    """An untrained BART of 2 + 2 layers, 192 wide."""
    sizes = {"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 768}
    sizes |= {name.replace("encoder", "decoder"): size for name, size in sizes.items()}
    ids = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    ends = {"decoder_start_token_id": EOS, "forced_eos_token_id": EOS}
    config = BartConfig(**ids, **ends, **sizes, d_model=192, max_position_embeddings=128, dropout=0.0)
    return BartForConditionalGeneration(config)


def adam(model: PreTrainedModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.98), weight_decay=0.01)


def adafactor(model: PreTrainedModel) -> torch.optim.Optimizer:
    """Steps in proportion to the weights, as T5 was trained: its embeddings start with a deviation of 1."""
    return Adafactor(model.parameters(), lr=2e-2, scale_parameter=True, relative_step=False)


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. It copies words in random order for the share ``copying`` of the steps."""

    untrained: Callable[[], PreTrainedModel]
    optimizer: Callable[[PreTrainedModel], torch.optim.Optimizer]
    copying: float


RECIPES = {"bart": Recipe(bart, adam, copying=0.15), "t5": Recipe(t5, adafactor, copying=0.4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default=",".join(RECIPES))
    parser.add_argument("--steps", type=int, default=2600)
    given = parser.parse_args()
    sentences = [sentence for sentences in split_sentences("brown").values() for sentence in sentences]
    tokenizer = tokenizer_of(sentences)
    write_task(given.folder / "restore")
    for name in given.models.split(","):
        if (given.folder / name / "model.safetensors").exists():
            continue
        torch.manual_seed(0)
        model = RECIPES[name].untrained()
        print(f"{name}: {model.num_parameters():,} parameters, {len(sentences):,} sentences", flush=True)
        pretrain(model, RECIPES[name], tokenizer, sentences, given.steps)
        tokenizer.save_pretrained(given.folder / name)
        model.save_pretrained(given.folder / name)


def split_sentences(task: str) -> dict[str, list[str]]:
    """The sentences of ``task`` by split, in the order of its texts."""
    return {
        split: [sentence for text in texts for sentence in sentences_of(text.text)]
        for split, texts in open_task(task).load().splits.items()
    }


def sentences_of(text: str) -> Iterator[str]:
    """The sentences of ``text`` that have as many words as :data:`WORDS` allows."""
    for line in text.splitlines():
        for sentence in re.split(r"(?<=[.?!])\s+(?=[A-Z“])", line):
            if len(sentence.split()) in WORDS:
                yield sentence.strip()


def tokenizer_of(sentences: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of :data:`VOCABULARY` tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(SPECIAL),
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    names = ("pad_token", "bos_token", "eos_token", "unk_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=128, **dict(zip(names, SPECIAL, strict=True))
    )


def masked(sentence: str, draw: random.Random) -> str:
    """``sentence`` with spans of words replaced by one mask each, about :data:`SHARE` of its words."""
    words, kept, i = sentence.split(), list[str](), 0
    start = SHARE / (1 + SPAN) * 2  # a span has (1 + SPAN) / 2 words in the mean
    while i < len(words):
        if draw.random() < start:
            kept.append(SPECIAL[MASK])
            i += draw.randint(1, SPAN)
        else:
            kept.append(words[i])
            i += 1
    return " ".join(kept)


def write_task(folder: Path) -> None:
    """Write sentences of Wikipedia with masked words, one file for each split of the articles."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for split, sentences in split_sentences("wiki_articles").items():
        chosen = draw.sample(sentences, min(COUNTS[split], len(sentences)))
        rows = [json.dumps({"source": masked(text, draw), "target": text}) for text in chosen]
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")


def pretrain(
    model: PreTrainedModel,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    sentences: Sequence[str],
    steps: int,
) -> None:
    """Train ``model`` for ``steps`` batches; masks are drawn anew for every batch."""
    model.train()
    optimizer = recipe.optimizer(model)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    draw = random.Random(0)
    for step in range(1, steps + 1):
        sources, targets = batch_of(sentences, draw, step / steps / recipe.copying)
        source = tokenizer(sources, padding=True, return_tensors="pt")
        loss = model(**inputs(source), labels=labels_of(tokenizer, targets)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps:
            print(f"  step {step}: loss {loss.item():.3f} nats per token", flush=True)


def batch_of(sentences: Sequence[str], draw: random.Random, copied: float) -> tuple[list[str], list[str]]:
    """Return :data:`BATCH` sources and their targets, of similar lengths.

    ``copied`` is how much of the copying is done, 1 at its end. Before it both are the same words in random
    order, of which there are more from step to step.
    """
    some = sorted((draw.choice(sentences) for _ in range(4 * BATCH)), key=len)
    start = draw.randrange(len(some) - BATCH)
    targets = some[start : start + BATCH]
    if copied < 1:
        words = [word for text in targets for word in text.split()]
        longest = 2 + round((LONGEST - 2) * copied)
        targets = [" ".join(draw.sample(words, draw.randint(1, longest))) for _ in targets]
        return targets, targets
    return [masked(text, draw) for text in targets], targets


def inputs(tokens: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def labels_of(tokenizer: PreTrainedTokenizerFast, targets: Sequence[str]) -> Tensor:
    """Token ids of ``targets`` (N, L) with an end marker; padding is ignored."""
    ended = tokenizer([text + SPECIAL[EOS] for text in targets], padding=True, return_tensors="pt")
    return ended["input_ids"].masked_fill(ended["attention_mask"] == 0, IGNORED)


if __name__ == "__main__":
    main()
