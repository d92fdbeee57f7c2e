"""The repeated blocks of a model by name, and recorded calls of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache

_BLOCK = re.compile(r"^(?:.*?\.)?(?:layers?|h|blocks?)\.\d+(?=\.|$)")


@dataclass(frozen=True)
class BlockCall:
    """One recorded call of a block: its arguments, hidden states included, and its output."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def hidden(self) -> Tensor:
        return hidden_argument(self.args, self.kwargs)

    def on(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Call ``block`` with other hidden states and the recorded remaining arguments."""
        if self.args:
            return hidden_output(block(hidden, *self.args[1:], **self.kwargs))
        return hidden_output(block(**{**self.kwargs, "hidden_states": hidden}))

    def without_states(self) -> BlockCall:
        """The call without its hidden states and its output, for :meth:`on`."""
        if self.args:
            return BlockCall((None, *self.args[1:]), self.kwargs, None)
        return BlockCall((), {**self.kwargs, "hidden_states": None}, None)


def block_names(model: nn.Module) -> list[str]:
    """The blocks of ``model``, in module order."""
    return [name for name, _ in model.named_modules() if block_name(name) == name]


def block_name(module: str) -> str | None:
    """The name of the outermost block that contains ``module``, or that it is; None outside of blocks."""
    hit = _BLOCK.match(module)
    return hit[0] if hit else None


def hidden_output(output: Any) -> Tensor:
    """The hidden states in a block's output: all of it, or its first element."""
    states: Tensor = output if isinstance(output, Tensor) else output[0]
    return states


def hidden_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states among a block's arguments."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def without_cache(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Drop the key-value cache: a second call would find the keys of the first one in it."""
    kept = tuple(None if isinstance(value, Cache) else value for value in args)
    return kept, {name: None if isinstance(value, Cache) else value for name, value in kwargs.items()}
