"""The interfaces of precision rules and of rank rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

if TYPE_CHECKING:  # the command line reads configs without importing torch
    from bitrank_adapters import AdapterScale, AdapterStart
    from bitrank_quant import Format, WeightMatrix
    from torch import Tensor, nn

    from bitrank.spec.adapter_hook import Attached
    from bitrank.spec.inits import Init

    Encode = Callable[[str, Tensor, Format], dict[str, Tensor]]  # a quantizer: name, weight (O, I), format

Formats = dict[str, str]
Ranks = dict[str, int]


@dataclass(frozen=True)
class AttachOptions:
    """Settings of adapters that are the same for every rank rule.

    ``heads`` are the modules trained in full. Rank schedules span ``total_steps`` optimizer steps.
    """

    scale: AdapterScale
    heads: Sequence[str]
    seed: int
    total_steps: int

    @property
    def shared(self) -> dict[str, Any]:
        """The arguments that every function of the adapters package takes."""
        return {"scale": self.scale, "heads": self.heads, "seed": self.seed}


class PrecisionRule(Protocol):
    def assign_formats(self, matrices: Sequence[WeightMatrix]) -> Formats:
        """Assign a format to each of ``matrices``: all of the model except tied heads."""


class RankRule(Protocol):
    triplets: ClassVar[bool]  # whether each rank has a singular value, and its use is averaged in training
    own_formats: ClassVar[bool]  # whether the adapters fit the formats of their arm only
    needs_hook: ClassVar[bool]  # whether training or saving needs the hook that attach returns
    trains_scales: ClassVar[bool]  # whether matrices train without a rank: scales of their formats

    def refusal(self, init: Init) -> str | None:
        """The reason why the adapters cannot start by ``init``; None if they can."""

    def in_format(self, text: str) -> RankRule:
        """Return the rule for blocks in the format ``text``, if its adapters depend on the format."""

    def check_formats(self, formats: Formats, ranks: Ranks) -> None:
        """Raise :class:`UserError` if adapters of ``ranks`` do not fit matrices in the ``formats``."""

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether a matrix of ``shape`` (out, in) can have an adapter."""

    def trained_numbers(self, shape: Sequence[int], rank: int) -> int:
        """Trained numbers of an adapter on a matrix of ``shape`` (out, in), without singular values."""

    def stored_numbers(self, shape: Sequence[int], rank: int) -> int:
        """As :meth:`trained_numbers`, in the file of the adapter."""

    def trained_in_format(self, shape: tuple[int, int], text: str) -> int:
        """Trained numbers that replace stored ones of a matrix in the format ``text``: no bytes are added."""

    def assign_ranks(self, blocks: Sequence[WeightMatrix]) -> Ranks:
        """Assign an initial rank to every block matrix."""

    def start(self, ranks: Ranks, encode: Encode | None) -> AdapterStart | None:
        """How adapters of ``ranks`` start that need the unquantized weights; None: as the run's init says.

        ``encode`` is the quantizer of the run; None: it rounds.
        """

    def attach(self, model: nn.Module, ranks: Ranks, options: AttachOptions) -> Attached:
        """Add adapters to ``model``; returns it with the hook that the training loop calls."""


class Adapters:
    """Adapters that add a low-rank product, in any format and from any start."""

    triplets: ClassVar[bool] = False
    own_formats: ClassVar[bool] = False
    needs_hook: ClassVar[bool] = False
    trains_scales: ClassVar[bool] = False

    def refusal(self, init: Init) -> str | None:
        return None

    def in_format(self, text: str) -> Self:
        return self

    def check_formats(self, formats: Formats, ranks: Ranks) -> None: ...

    def takes(self, shape: Sequence[int]) -> bool:
        return True

    def start(self, ranks: Ranks, encode: Encode | None) -> AdapterStart | None:
        return None

    def trained_numbers(self, shape: Sequence[int], rank: int) -> int:
        return rank * sum(shape)

    def stored_numbers(self, shape: Sequence[int], rank: int) -> int:
        return self.trained_numbers(shape, rank)

    def trained_in_format(self, shape: tuple[int, int], text: str) -> int:
        return 0
