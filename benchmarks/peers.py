"""The peer: Hugging Face Trainer + PEFT + bitsandbytes, used as documented; prints one JSON line.

    python benchmarks/peers.py --peer tuned --config B-FP --task movie_sentences --steps 24 --threads 2
    [--until tested]

``default``: fp32 weights, random order, padding to the longest, dropout and attention of the model's config,
and for 4 bits ``prepare_model_for_kbit_training`` with its defaults. ``tuned``: the changes of an expert:
bf16 weights if the hardware multiplies them fast (otherwise fp32), with lengths padded to multiples of 8,
sentences grouped by length, no dropout, and plain attention on a CPU (the fastest there at these lengths).
Device, model, texts, split, tokens, batch, steps, learning rate and schedule equal those of our run, and one
function evaluates both sides. With ``--turns`` it waits for a line before every step, like ``turns.py``.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import tempfile
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from typing import Any

import bitsandbytes  # noqa: F401 - imported by the peer, so part of its memory baseline
import torch
from bitrank.models.load import load_tokenizer
from bitrank.models.locate import locate
from bitrank.run.data import RunData, load_data
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec
from bitrank_data import CLASSIFICATION, LANGUAGE_MODELLING, TokenSplit
from bitrank_trainer import (
    DTYPES,
    OBJECTIVES,
    choose_device,
    choose_dtype,
    device_memory_mib,
    peak_memory_mib,
    width_multiple,
)
from datasets import Dataset
from harness import WARM_UP
from peft import AdaLoraConfig, LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from turns import InputEnded, Turn

CONFIGS = ("B-FP", "B-Q4", "B-Ada")
# All linear layers inside the blocks: BERT's by a pattern that excludes the pooler, Llama's by name.
_TARGETS = {
    CLASSIFICATION: r".*\.layer\.\d+\..*(query|key|value|dense)",
    LANGUAGE_MODELLING: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


class Timed(Trainer):
    """A Trainer that counts the tokens it trains on, without padding."""

    tokens = 0

    def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> torch.Tensor:
        self.tokens += int(inputs["attention_mask"].sum())
        out: torch.Tensor = super().training_step(model, inputs, *rest, **named)
        return out


class Clock(TrainerCallback):
    """Records (tokens, seconds) after each step."""

    def __init__(self) -> None:
        self.trainer: Timed | None = None
        self.points: list[tuple[int, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        assert self.trainer is not None
        self.points.append((self.trainer.tokens, time.perf_counter()))


class InTurns(TrainerCallback):
    """Waits before each step, and prints its seconds and tokens after it."""

    def __init__(self) -> None:
        self.trainer: Timed | None = None
        self._turn, self._tokens = Turn(), 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._turn.ready()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        assert self.trainer is not None
        self._turn.tokens, self._tokens = self.trainer.tokens - self._tokens, self.trainer.tokens
        self._turn.over()


class Allocate(TrainerCallback):
    """AdaLoRA's update after each optimizer step, before gradients are cleared, as PEFT documents."""

    def on_optimizer_step(self, _: Any, state: Any, __: Any, model: Any = None, **___: Any) -> None:
        model.base_model.update_and_allocate(state.global_step + 1)


def main() -> None:
    arguments = _arguments()
    _quiet()
    torch.set_num_threads(arguments.threads)
    baseline = peak_memory_mib()
    given = {
        "steps": arguments.steps,
        "threads": arguments.threads,
        "model": arguments.model,
        "batch_size": arguments.batch,
    }
    spec = replace(
        make_spec(find_profile("laptop"), arguments.config, arguments.task, given), seed=arguments.seed
    )
    tuned = arguments.peer == "tuned"
    data = load_data(spec)
    torch.manual_seed(spec.seed)
    model = _adapted(_load(spec, tuned, len(data.task.classes)), spec, tuned)
    with tempfile.TemporaryDirectory() as folder:
        trainer, clock = _trainer(model, spec, data, tuned, folder)
        if arguments.turns:
            _train_in_turns(trainer)
            return
        trainer.train()
    figures = _figures(clock, trainer, baseline)
    if arguments.until == "tested":
        figures["quality"] = _quality(model, spec, data)
    print(json.dumps(figures))


def _train_in_turns(trainer: Timed) -> None:
    turns = InTurns()
    turns.trainer = trainer
    trainer.add_callback(turns)
    with suppress(InputEnded):
        trainer.train()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peer", choices=["default", "tuned"], required=True)
    parser.add_argument("--config", choices=CONFIGS, required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--model", help="instead of the task's model")
    parser.add_argument("--batch", type=int, help="sequences of a batch, instead of the profile's")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", choices=["trained", "tested"], default="trained")
    parser.add_argument("--turns", action="store_true", help="wait for a line before every step")
    arguments = parser.parse_args()
    if arguments.steps <= WARM_UP:
        parser.error(f"--steps must be above {WARM_UP}: the first {WARM_UP} are a warm-up")
    return arguments


def _load(spec: RunSpec, tuned: bool, classes: int) -> Any:
    path, dtype = locate(spec.model), DTYPES[choose_dtype(choose_device())] if tuned else torch.float32
    config = AutoConfig.from_pretrained(path)
    options: dict[str, Any] = {"config": config, "dtype": dtype}
    if tuned:
        options["attn_implementation"] = "eager" if choose_device() == "cpu" else "sdpa"
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout"):
            if hasattr(config, name):
                setattr(config, name, 0.0)
    if spec.config == "B-Q4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            # A newly initialised classifier has no stored weight to quantize, and would fail.
            llm_int8_skip_modules=["classifier", "lm_head"],
        )
    if spec.kind == CLASSIFICATION:
        config.num_labels = classes
        return AutoModelForSequenceClassification.from_pretrained(path, **options)
    return AutoModelForCausalLM.from_pretrained(path, **options)


def _adapted(model: Any, spec: RunSpec, tuned: bool) -> Any:
    if spec.config == "B-Q4" and not tuned:
        model = prepare_model_for_kbit_training(model)
    common: dict[str, Any] = {
        "target_modules": _TARGETS[spec.kind],
        "task_type": "SEQ_CLS" if spec.kind == CLASSIFICATION else "CAUSAL_LM",
    }
    if spec.config != "B-Ada":
        return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, **common))
    steps = spec.steps or 1
    schedule = {
        "tinit": round(0.1 * steps),
        "tfinal": max(1, round(0.4 * steps)),
        "deltaT": 5,
        "total_step": steps,
    }
    return get_peft_model(
        model, AdaLoraConfig(init_r=12, target_r=4, lora_alpha=24, orth_reg_weight=0.1, **schedule, **common)
    )


def _trainer(model: Any, spec: RunSpec, data: RunData, tuned: bool, folder: str) -> tuple[Timed, Clock]:
    tokenizer = load_tokenizer(spec.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    classification = spec.kind == CLASSIFICATION
    options = TrainingArguments(
        output_dir=folder,
        max_steps=spec.steps or 1,
        per_device_train_batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=spec.warmup,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.clip,
        train_sampling_strategy="group_by_length" if tuned else "random",
        seed=spec.seed,
        use_cpu=choose_device() == "cpu",
        dataloader_pin_memory=choose_device() == "cuda",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    multiple = width_multiple(choose_device(), DTYPES[choose_dtype(choose_device())]) if tuned else None
    if classification:
        collate: Any = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=multiple)
    else:
        collate = DataCollatorForLanguageModeling(tokenizer, mlm=False, pad_to_multiple_of=multiple)
    clock = Clock()
    train = _dataset(data.task.splits["train"], classification)
    callbacks = [clock, *([Allocate()] if spec.config == "B-Ada" else [])]
    trainer = Timed(
        model=model, args=options, train_dataset=train, data_collator=collate, callbacks=callbacks
    )
    clock.trainer = trainer
    return trainer, clock


def _dataset(split: TokenSplit, labelled: bool) -> Dataset:
    sequences = [split.sequence(number).tolist() for number in range(len(split))]
    columns: dict[str, Any] = {
        "input_ids": sequences,
        "attention_mask": [[1] * len(sequence) for sequence in sequences],
    }
    return Dataset.from_dict({**columns, "labels": split.labels_N.tolist()} if labelled else columns)


def _figures(clock: Clock, trainer: Timed, baseline: float) -> dict[str, Any]:
    (tokens0, time0), (tokens1, time1) = clock.points[WARM_UP - 1], clock.points[-1]
    tokens, seconds, steps = tokens1 - tokens0, time1 - time0, len(clock.points) - WARM_UP
    speed = {
        "tok_s": tokens / seconds,
        "wall_tok_s": tokens / seconds,
        "step_s": seconds / steps,
        "tokens": tokens,
        "seconds": seconds,
    }
    loss = next(entry["train_loss"] for entry in trainer.state.log_history if "train_loss" in entry)
    return {**speed, "steps": steps, "mean_loss": loss, "import_mib": baseline, **_memory()}


def _memory() -> dict[str, float]:
    return {"peak_mib": peak_memory_mib(), "device_mib": device_memory_mib(choose_device())}


def _quality(model: Any, spec: RunSpec, data: RunData) -> float:
    """Accuracy or perplexity on the test set, by the function that evaluates our runs."""
    model.eval()
    metrics = data.evaluate(model, data.test, OBJECTIVES[spec.kind].plain(), choose_device()).metrics
    quality = metrics[OBJECTIVES[spec.kind].metric]
    assert math.isfinite(quality)
    return quality


def _quiet() -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
