"""Kinds of tasks: everything that a run, a plan and the store need to know of one, in one entry.

Each package has an entry of its own: sequences and labels are in ``bitrank_data.DATA_KINDS`` under the same
name, the loss is in ``bitrank_trainer.OBJECTIVES``. Runs are compared on a metric if ``bitrank_analysis`` has
it in ``METRICS``. Fields of a spec for tasks of a kind are in each profile's ``by_kind``. Entries are plain
data: this module imports no model library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bitrank_data import (
    CLASSIFICATION,
    INSTRUCTION,
    LANGUAGE_MODELLING,
    MASKED_PROBING,
    PROBING,
    QUESTION_ANSWERING,
    SEQUENCE_TO_SEQUENCE,
)

from bitrank.errors import unknown


@dataclass(frozen=True)
class TaskMetric:
    """Metric that a task is ranked by.

    A run logs it as ``eval/<key>``, ``val/<key>`` and ``zero/<key>`` (before training); ``name`` is the text
    in summaries and views, and ``decimals`` how many digits a table shows.
    """

    key: str
    name: str
    higher_is_better: bool
    decimals: int

    def text(self, value: float) -> str:
        """``acc 0.833``."""
        return f"{self.key} {value:.{self.decimals}f}"


@dataclass(frozen=True)
class CalibrationSizes:
    """Amounts of training data for sensitivity measurements, in sequences and in tokens per batch.

    ``moments`` sequences give gradient moments and the error of each matrix in each format. ``per_plan`` of
    them give the error of each kind of matrix in a plan. ``held_out`` other sequences compare plans.
    ``graph_tokens`` is smaller than ``batch_tokens``: the memory of a kept autograd graph grows with the
    batch.
    """

    moments: int
    per_plan: int
    held_out: int
    batch_tokens: int
    graph_tokens: int


@dataclass(frozen=True)
class Requirement:
    """Models that a kind of task needs, as text of errors about others.

    A model ``cannot <ability>``, transformers has ``no <model_class>``, and the user is to ``give <remedy>``.
    ``decoder_only``: the model must read one text from left to right, so encoders and encoder-decoders are
    refused even if transformers has such a class for them. ``encoder_only``: encoder-decoders are refused.
    """

    ability: str
    model_class: str
    remedy: str
    decoder_only: bool = False
    encoder_only: bool = False


@dataclass(frozen=True)
class Generation:
    """Generation from the prompt of every test example, by greedy decoding.

    ``scores`` are keys of ``bitrank.run.text_scores.TEXT_SCORES``, which compare a text with its reference. A
    text ends at the end-of-sequence token, at the most tokens of any reference of the split, or at
    ``longest`` tokens, whichever is first.
    """

    scores: tuple[str, ...]
    longest: int = 256


@dataclass(frozen=True)
class TaskKind:
    """One kind of task.

    ``objective`` is a key of ``bitrank_trainer.OBJECTIVES``. ``auto_model`` names the class of transformers
    that loads a model with the right head. ``new_head``: the head has one output per class, is trained whole
    and may be missing from a checkpoint. ``outputs`` names the head's outputs if the kind fixes them: a head
    of the checkpoint is kept then, whatever its labels are called. ``samples`` is a key of
    ``bitrank.run.generations.SAMPLES``: the texts that a run saves for reading. ``token_texts`` maps columns
    of texts in the table of predictions to columns of token ids that they spell out. ``generation``: how a
    run generates from the test examples, None if it does not. ``validation_sequences`` evaluate a planner's
    short training, and ``quick_steps`` are the optimizer steps of a study with ``--quick``: fewer if a step
    takes longer.
    """

    objective: str
    metric: TaskMetric
    auto_model: str
    requirement: Requirement
    calibration: CalibrationSizes
    validation_sequences: int
    quick_steps: int
    new_head: bool = False
    outputs: tuple[str, ...] = ()
    samples: str = "none"
    generation: Generation | None = None
    token_texts: Mapping[str, str] = field(default_factory=dict)


_PERPLEXITY = TaskMetric("ppl", "perplexity", higher_is_better=False, decimals=2)
_PRECISION = TaskMetric("p_at_1", "precision at 1", higher_is_better=True, decimals=3)
_OBJECT_TEXTS = {"prediction_text": "prediction", "reference_text": "label"}
TASK_KINDS: dict[str, TaskKind] = {
    CLASSIFICATION: TaskKind(
        objective="classification",
        metric=TaskMetric("acc", "accuracy", higher_is_better=True, decimals=3),
        auto_model="AutoModelForSequenceClassification",
        requirement=Requirement(
            "classify", "sequence classification", "another model, or a language-modelling task"
        ),
        calibration=CalibrationSizes(
            moments=256, per_plan=64, held_out=256, batch_tokens=1024, graph_tokens=512
        ),
        validation_sequences=256,
        quick_steps=100,
        new_head=True,
        samples="texts",
    ),
    LANGUAGE_MODELLING: TaskKind(
        objective="language-modelling",
        metric=_PERPLEXITY,
        auto_model="AutoModelForCausalLM",
        requirement=Requirement(
            "do language modelling",
            "causal language model",
            "a decoder such as smollm2 or gpt2",
            decoder_only=True,
        ),
        calibration=CalibrationSizes(moments=16, per_plan=4, held_out=32, batch_tokens=512, graph_tokens=128),
        validation_sequences=12,
        quick_steps=10,
        samples="continuations",
    ),
    SEQUENCE_TO_SEQUENCE: TaskKind(
        objective="sequence-to-sequence",
        metric=_PERPLEXITY,
        auto_model="AutoModelForSeq2SeqLM",
        requirement=Requirement(
            "map a text to another",
            "sequence-to-sequence language model",
            "an encoder-decoder such as google-t5/t5-small or facebook/bart-base",
        ),
        calibration=CalibrationSizes(
            moments=64, per_plan=16, held_out=64, batch_tokens=1024, graph_tokens=512
        ),
        validation_sequences=64,
        quick_steps=50,
        generation=Generation(("rouge", "bleu", "chrf", "answers")),
    ),
    INSTRUCTION: TaskKind(
        objective="instruction-following",
        metric=TaskMetric("completion_ppl", "completion perplexity", higher_is_better=False, decimals=2),
        auto_model="AutoModelForCausalLM",
        requirement=Requirement(
            "learn instructions",
            "causal language model",
            "a decoder such as smollm2 or gpt2",
            decoder_only=True,
        ),
        calibration=CalibrationSizes(moments=32, per_plan=8, held_out=64, batch_tokens=512, graph_tokens=128),
        validation_sequences=32,
        quick_steps=10,
        generation=Generation(("rouge", "answers")),
    ),
    QUESTION_ANSWERING: TaskKind(
        objective="question-answering",
        metric=TaskMetric("token_f1", "F1 of words", higher_is_better=True, decimals=3),
        auto_model="AutoModelForQuestionAnswering",
        requirement=Requirement(
            "mark answers in a context", "question answering", "an encoder such as minilm"
        ),
        calibration=CalibrationSizes(
            moments=128, per_plan=32, held_out=128, batch_tokens=1024, graph_tokens=512
        ),
        validation_sequences=128,
        quick_steps=100,
        new_head=True,
        outputs=("start", "end"),
        samples="texts",
    ),
    PROBING: TaskKind(
        objective="probing",
        metric=_PRECISION,
        auto_model="AutoModelForCausalLM",
        requirement=Requirement(
            "continue a prompt",
            "causal language model",
            "a decoder such as smollm2 or gpt2, or an encoder with --kind masked-probing",
            decoder_only=True,
        ),
        calibration=CalibrationSizes(
            moments=256, per_plan=64, held_out=256, batch_tokens=512, graph_tokens=128
        ),
        validation_sequences=256,
        quick_steps=50,
        samples="texts",
        token_texts=_OBJECT_TEXTS,
    ),
    MASKED_PROBING: TaskKind(
        objective="masked-probing",
        metric=_PRECISION,
        auto_model="AutoModelForMaskedLM",
        requirement=Requirement(
            "predict a masked token",
            "masked language model",
            "an encoder with its language-model head, such as bert-base-uncased",
            encoder_only=True,
        ),
        calibration=CalibrationSizes(
            moments=256, per_plan=64, held_out=256, batch_tokens=512, graph_tokens=128
        ),
        validation_sequences=256,
        quick_steps=50,
        samples="texts",
        token_texts=_OBJECT_TEXTS,
    ),
}


def task_kind(name: str) -> TaskKind:
    """Entry ``name`` of :data:`TASK_KINDS`. Raises :class:`UserError` with the known names for another."""
    if name not in TASK_KINDS:
        raise unknown("kind of task", name, TASK_KINDS)
    return TASK_KINDS[name]


def task_metrics() -> list[TaskMetric]:
    """The metrics of all kinds, each once, in the order of the registry."""
    return list(dict.fromkeys(kind.metric for kind in TASK_KINDS.values()))
