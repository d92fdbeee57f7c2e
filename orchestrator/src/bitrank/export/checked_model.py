"""What a target must know of a model to accept it, for the export of a run and for a plan before any run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bitrank.errors import UserError
from bitrank.models.architectures import config_of
from bitrank.models.load import load_tokenizer
from bitrank.models.locate import locate
from bitrank.spec.run_spec import RunSpec


@dataclass(frozen=True)
class CheckedModel:
    """A model with the kind of its task, and the most tokens of its texts.

    ``place`` is a folder, a hub id, or the file of a configuration. ``is_outline``: it has no weights, and
    may have no tokenizer.
    """

    name: str
    place: str
    kind: str
    max_length: int
    is_outline: bool = False

    @classmethod
    def of_run(cls, spec: RunSpec) -> CheckedModel:
        """The model of ``spec``."""
        return cls(spec.model_source, locate(spec.model_source), spec.kind, spec.max_length)

    @classmethod
    def of_outline(cls, spec: RunSpec) -> CheckedModel:
        """The model whose ``config.json`` is at ``spec.model``."""
        return cls(spec.model, spec.model, spec.kind, spec.max_length, is_outline=True)

    @cached_property
    def config(self) -> Any:
        """The stored configuration. Raises :class:`UserError` if there is none."""
        return config_of(self.name, self.place)

    def tokenizer(self) -> Any:
        """The tokenizer; None for an outline that has none beside its ``config.json``."""
        if not self.is_outline:
            return load_tokenizer(self.name)
        path = Path(self.place)
        folder = path.parent if path.name == "config.json" else path
        try:
            return load_tokenizer(str(folder)) if folder.is_dir() else None
        except UserError:
            return None
