"""Profiles: tasks, models and lengths of training of a study.

``laptop`` uses models and data from PyPI packages for minutes, ``base`` larger ones for hours. ``paper`` is
the study of the paper and ``dialogue`` that of ranks on instructions (hub models and data, three seeds).
``smoke`` takes seconds on tiny random models; its figures allow no conclusion about methods.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bitrank_data import (
    CLASSIFICATION,
    INSTRUCTION,
    LANGUAGE_MODELLING,
    MASKED_PROBING,
    PROBING,
    QUESTION_ANSWERING,
    SEQUENCE_TO_SEQUENCE,
)

from bitrank.errors import UserError, unknown


@dataclass(frozen=True)
class Profile:
    """Tasks and seeds of a study matrix, and its defaults for the fields of a spec.

    ``by_kind`` has defaults for each kind of task; ``by_task`` overrides them for single tasks.
    """

    name: str
    about: str
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    by_kind: dict[str, dict[str, Any]] = field(default_factory=dict)
    by_task: dict[str, dict[str, Any]] = field(default_factory=dict)

    def fields_for(self, kind: str, task: str) -> dict[str, Any]:
        """Fields of a spec for ``task``, which is of ``kind``.

        Raises :class:`~bitrank.errors.UserError` if the profile has none for the kind.
        """
        if kind not in self.by_kind:
            raise UserError(
                f"the profile {self.name} has no settings for tasks of the kind {kind!r}, only for "
                f"{', '.join(self.by_kind)}; add them to its by_kind, or give another profile"
            )
        return {**self.by_kind[kind], **self.by_task.get(task, {})}


# Two windows of each document are evaluated for these long texts; a user's own files are evaluated whole.
_TWO_WINDOWS = {"test_windows": 2, "validation_windows": 2}
# A conversation has a few hundred tokens, and the task has a thousand of them for the test.
_ONE_WINDOW = {"test_windows": 1, "validation_windows": 1}

# Fields of a spec by kind of task.
_LAPTOP: dict[str, dict[str, Any]] = {
    CLASSIFICATION: {
        "model": "minilm",
        "threads": 1,
        "steps": 320,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "max_length": 128,
        "log_every": 10,
        "eval_every": 160,
        "checkpoint_every": 40,
        "dropout": 0.0,
    },
    LANGUAGE_MODELLING: {
        "model": "smollm2",
        "threads": 1,
        "steps": 30,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "max_length": 128,
        "log_every": 1,
        "eval_every": 15,
        "checkpoint_every": 10,
        "dropout": 0.0,
    },
    SEQUENCE_TO_SEQUENCE: {
        "model": "google-t5/t5-small",
        "threads": 1,
        "steps": 200,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "max_length": 256,
        "log_every": 10,
        "eval_every": 50,
        "checkpoint_every": 50,
        "dropout": 0.0,
    },
    INSTRUCTION: {
        "model": "smollm2",
        "threads": 1,
        "steps": 60,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "max_length": 256,
        "log_every": 1,
        "eval_every": 30,
        "checkpoint_every": 10,
        "dropout": 0.0,
    },
    QUESTION_ANSWERING: {
        "model": "minilm",
        "threads": 1,
        "steps": 400,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "max_length": 256,
        "log_every": 10,
        "eval_every": 200,
        "checkpoint_every": 40,
        "dropout": 0.0,
    },
    PROBING: {
        "model": "smollm2",
        "threads": 1,
        "steps": 60,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "max_length": 64,
        "log_every": 5,
        "eval_every": 20,
        "checkpoint_every": 10,
        "dropout": 0.0,
    },
    MASKED_PROBING: {
        "model": "bert-base-uncased",
        "threads": 1,
        "steps": 60,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "max_length": 64,
        "log_every": 5,
        "eval_every": 20,
        "checkpoint_every": 10,
        "dropout": 0.0,
    },
}
# The models of ``laptop``'s kinds, MPNet in place of MiniLM, trained for 1,000 steps or more.
_BASE: dict[str, dict[str, Any]] = {
    CLASSIFICATION: {
        **_LAPTOP[CLASSIFICATION],
        "model": "mpnet",
        "steps": 1000,
        "learning_rate": 5e-4,
        "log_every": 50,
        "eval_every": 250,
        "checkpoint_every": 250,
    },
    LANGUAGE_MODELLING: {
        **_LAPTOP[LANGUAGE_MODELLING],
        "steps": 1000,
        "learning_rate": 1e-3,
        "max_length": 256,
        "log_every": 10,
        "eval_every": 100,
        "checkpoint_every": 50,
    },
    PROBING: {
        **_LAPTOP[PROBING],
        "steps": 1000,
        "learning_rate": 5e-4,
        "log_every": 20,
        "eval_every": 100,
        "checkpoint_every": 50,
    },
}
_PAPER: dict[str, dict[str, Any]] = {
    CLASSIFICATION: {
        "model": "bert-base-uncased",
        "epochs": 3,
        "batch_size": 8,
        "max_length": 128,
    },
    LANGUAGE_MODELLING: {"model": "gpt2", "epochs": 3, "batch_size": 4, "max_length": 512},
    SEQUENCE_TO_SEQUENCE: {
        "model": "google-t5/t5-small",
        "epochs": 3,
        "batch_size": 8,
        "max_length": 512,
    },
    INSTRUCTION: {"model": "gpt2", "epochs": 3, "batch_size": 8, "max_length": 512},
    QUESTION_ANSWERING: {
        "model": "bert-base-uncased",
        "epochs": 2,
        "batch_size": 8,
        "max_length": 384,
    },
    PROBING: {"model": "gpt2", "epochs": 3, "batch_size": 8, "max_length": 64},
    MASKED_PROBING: {"model": "bert-base-uncased", "epochs": 3, "batch_size": 8, "max_length": 64},
}
# Adapters are on every matrix of the blocks: c_attn, c_proj and c_fc in GPT-2's architecture.
_DIALOGUE: dict[str, dict[str, Any]] = {
    INSTRUCTION: {"model": "microsoft/DialoGPT-medium", "epochs": 3, "batch_size": 8, "max_length": 256},
}
_TOY: dict[str, Any] = {
    "threads": 1,
    "steps": 20,
    "batch_size": 8,
    "learning_rate": 5e-3,
    "max_length": 32,
    "log_every": 2,
    "eval_every": 5,
    "checkpoint_every": 4,
    "dropout": 0.0,
}
_SMOKE: dict[str, dict[str, Any]] = {
    CLASSIFICATION: {**_TOY, "model": "tiny-bert"},
    LANGUAGE_MODELLING: {**_TOY, "model": "tiny-llama", "batch_size": 4},
    SEQUENCE_TO_SEQUENCE: {**_TOY, "model": "tiny-t5"},
    INSTRUCTION: {**_TOY, "model": "tiny-llama"},
    QUESTION_ANSWERING: {**_TOY, "model": "tiny-bert"},
    PROBING: {**_TOY, "model": "tiny-llama"},
    MASKED_PROBING: {**_TOY, "model": "tiny-mlm"},
}


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            "laptop",
            "embedded models and text, one seed, minutes on two CPU cores",
            ("movie_sentences", "wiki_articles"),
            (0,),
            _LAPTOP,
            {
                **dict.fromkeys(("wiki_articles", "wikitext2", "toy_articles", "brown"), _TWO_WINDOWS),
                "chitchat": _ONE_WINDOW,
            },
        ),
        Profile(
            "paper",
            "SST-2 with bert-base-uncased and WikiText-2 with GPT-2 small, three epochs, seeds 0, 1, 2",
            ("sst2", "wikitext2"),
            (0, 1, 2),
            _PAPER,
        ),
        Profile(
            "base",
            "MPNet and SmolLM2 on four larger tasks, one seed, hours on two CPU cores",
            ("multiemo", "vitaminc", "brown", "qa_wikidata"),
            (0,),
            _BASE,
            {
                "multiemo": {"max_length": 64},
                "vitaminc": {"max_length": 128},
                "brown": _TWO_WINDOWS,
            },
        ),
        Profile(
            "dialogue",
            "subsets of Alpaca and Dolly with DialoGPT-medium, three epochs, seeds 0, 1, 2",
            ("alpaca", "dolly"),
            (0, 1, 2),
            _DIALOGUE,
        ),
        Profile(
            "smoke",
            "tiny random models on toy text, for tests only; do not interpret its figures",
            ("toy_sentences", "toy_articles"),
            (0,),
            _SMOKE,
        ),
    )
}


def find_profile(name: str) -> Profile:
    """Return the profile ``name``. Raises :class:`~bitrank.errors.UserError` with the nearest names."""
    if name not in PROFILES:
        raise unknown("profile", name, PROFILES)
    return PROFILES[name]
