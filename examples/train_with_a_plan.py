"""Plan bits and ranks for a model, then train it with transformers' own ``Trainer``.

    python examples/train_with_a_plan.py                            # MiniLM on movie reviews in 9 MB: minutes
    python examples/train_with_a_plan.py --task reviews.csv --budget 3.5bits --steps 500

``plan`` measures the model on samples of the task, ``apply`` stores its matrices in the plan's formats,
``attach`` gives each one its rank. The result is a PEFT model, which any training loop can train.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import bitrank
import numpy as np
from bitrank.models.locate import locate
from bitrank_data import open_task
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="minilm", help="an embedded model, a hub id or a folder")
    parser.add_argument(
        "--task", default="movie_sentences", help="a task's name or a file with text and label"
    )
    parser.add_argument("--budget", default="9MB", help="bytes, bits per parameter, or '=CONFIG'")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps")
    parser.add_argument("--profile", default="laptop", help="defaults of the planned run")
    parser.add_argument(
        "--out", default="train-with-a-plan", help="the folder for checkpoints and the adapter"
    )
    arguments = parser.parse_args()

    plan = bitrank.plan(arguments.model, arguments.task, arguments.budget, profile=arguments.profile)
    formats, ranks = Counter(plan["precision"].values()), Counter(plan["ranks"].values())
    print(f"{plan['bytes']:,} of {plan['budget']:,} bytes; formats {dict(formats)}; ranks {dict(ranks)}")
    bitrank.save_plan(plan, "plan.json")

    texts = open_task(arguments.task).load()
    tokenizer = AutoTokenizer.from_pretrained(locate(arguments.model))
    model = AutoModelForSequenceClassification.from_pretrained(
        locate(arguments.model), num_labels=len(texts.classes)
    )
    bitrank.apply(model, plan)
    adapted = bitrank.attach(model, plan)
    adapted.print_trainable_parameters()

    trainer = Trainer(
        adapted,
        TrainingArguments(
            arguments.out,
            max_steps=arguments.steps,
            per_device_train_batch_size=32,
            learning_rate=1e-3,
            report_to=[],
        ),
        train_dataset=encoded(texts.splits["train"], tokenizer),
        eval_dataset=encoded(texts.splits["test"], tokenizer),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
    )
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    after = trainer.evaluate()["eval_accuracy"]
    trainer.save_model(f"{arguments.out}/adapter")
    print(f"test accuracy: {before:.3f} before training, {after:.3f} after")


def encoded(examples: list[Any], tokenizer: Any) -> list[dict[str, Any]]:
    """Token ids and labels, as the ``Trainer`` takes them."""
    rows = []
    for example in examples:
        tokens = tokenizer(example.text, truncation=True, max_length=128)
        rows.append({**tokens, "labels": example.label})
    return rows


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


if __name__ == "__main__":
    main()
