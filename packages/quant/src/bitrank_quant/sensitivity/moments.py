"""Second moments of inputs and output gradients, and spectra of task gradient and inputs, per matrix.

For a linear layer y = W x, W being (O, I), and a loss that is a mean over U units, the Fisher information of
W is approximated by

    F_oi ≈ row_o · column_i,    row_o = (1/U) Σ_n (∂Σloss/∂y_no)²,    column_i = (1/N) Σ_n x_ni²

over the N positions of the layer's input, without padding: the diagonals of both Kronecker factors (Martens
and Grosse 2015). An error Δ of the weights then adds a predicted ½ Σ_oi F_oi Δ_oi² nats. For an embedding,
``row`` is the frequency of each token (with one count spread over all tokens, so that none is zero), and
``column`` the mean squared gradient of the rows that were looked up.

One backward sweep: from the loss to the output of the last block, from block to block, and from the first
block to the embeddings. Each block is recomputed for its own gradients and then released, so memory holds
one block's graph and the sums of its matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitrank_quant.backends.reference import QuantEmbedding, QuantLinear
from bitrank_quant.errors import QuantError
from bitrank_quant.matrices import WeightMatrix
from bitrank_quant.quantizers import InputMoments
from bitrank_quant.sensitivity.lookups import Lookups, add_squares, watched_lookups
from bitrank_quant.sensitivity.replay import Replay
from bitrank_quant.sensitivity.samples import (
    LayerSample,
    LinearSums,
    LookupSample,
    positions_a_batch,
)
from bitrank_quant.sensitivity.spectra import SPECTRUM, singular_values

_ROWS = 1024  # rows of a table converted to fp32 together


@dataclass(frozen=True)
class Moments:
    """Statistics of one matrix (O, I), in fp32 on the CPU.

    ``row_O`` and ``column_I``: the factors of the module's description.
    ``gradient_K``: singular values of the task gradient ∂loss/∂W (mean loss, nats), largest first.
    ``input_K``: eigenvalues of the inputs' second-moment matrix, largest first.
    ``importance``: mean |W ∘ ∂loss/∂W| (GoRA).
    ``norm``: ‖W‖_F.
    ``head_row_O`` and ``head_column_I``: the factors of a head tied to this embedding, empty otherwise.
    """

    row_O: Tensor
    column_I: Tensor
    gradient_K: Tensor
    input_K: Tensor
    importance: float
    norm: float
    head_row_O: Tensor
    head_column_I: Tensor

    def weights(self) -> list[tuple[Tensor, Tensor]]:
        """The (row, column) pairs whose outer products add up to the Fisher diagonal."""
        pairs = [(self.row_O, self.column_I)]
        return [*pairs, (self.head_row_O, self.head_column_I)] if len(self.head_row_O) else pairs

    def quantizer_inputs(self) -> InputMoments:
        """The mean squares of the inputs for a quantizer: of a table those of the head that shares it, and
        ones if there is none, because columns of a row that is only looked up are added to nothing."""
        if len(self.head_column_I):
            return InputMoments(self.head_column_I)
        looked_up = len(self.input_K) == 0
        return InputMoments(torch.ones(len(self.column_I)) if looked_up else self.column_I)


OnMatrix = Callable[[str, Moments, LayerSample | LookupSample], None]
"""Called with the name, moments and sample of a matrix as soon as these are complete."""


def measure_moments(
    replay: Replay,
    matrices: Sequence[WeightMatrix],
    on_progress: Callable[[str], None] = lambda _: None,
    on_matrix: OnMatrix = lambda *_: None,
) -> dict[str, Moments]:
    """Moments by matrix name, for every matrix that is not tied to another one.

    ``on_progress`` is called with the name of each block. ``on_matrix`` gets each matrix's sample, which is
    released with its block. If the blocks do not form a chain (:attr:`Replay.chained`), one backward pass
    collects everything, with the sums of all matrices in memory. Raises :class:`QuantError` if a gradient is
    not finite, or if none reaches a matrix.
    """
    owned = [m for m in matrices if m.tied_to is None]
    inside: dict[str, list[WeightMatrix]] = {block: [] for block in replay.order}
    for matrix in owned:
        block = replay.block_of(matrix.name)
        if block in inside:
            inside[block].append(matrix)
    in_blocks = [matrix for found in inside.values() for matrix in found]
    has_table = any(matrix.role == "embedding" for matrix in in_blocks)
    chained = bool(replay.order) and replay.chained and not has_table
    rest = [m for m in owned if not chained or replay.block_of(m.name) is None]
    outside = _Outside(replay, rest, [m for m in matrices if m.tied_to is not None])
    if chained:
        done = _swept(replay, inside, outside, on_progress, on_matrix)
    else:
        with outside.gathering(tables=True):
            replay.back_through_all()
        done = {}
    done |= outside.moments(on_matrix)
    return {m.name: done[m.name] for m in owned}


def _swept(
    replay: Replay,
    inside: Mapping[str, Sequence[WeightMatrix]],
    outside: _Outside,
    on_progress: Callable[[str], None],
    on_matrix: OnMatrix,
) -> dict[str, Moments]:
    """Moments of the matrices inside blocks, from the last block to the first.

    ``outside`` collects the matrices outside of blocks during the same sweep.
    """
    done: dict[str, Moments] = {}
    on_progress("after the blocks")
    with outside.gathering(tables=False):
        gradients = replay.back_from_loss()
    limit = positions_a_batch(len(replay.batches))
    for block in reversed(replay.order):
        on_progress(block)
        sums = {m.name: LinearSums(limit) for m in inside[block]}
        with _hooked(replay.model, _watching(sums, replay)):
            gradients = replay.back_through(block, gradients)
        done |= _finished(replay, sums, on_matrix)
    on_progress("before the blocks")
    with outside.gathering(tables=True):
        replay.back_to_start(gradients)
    return done


def _finished(replay: Replay, sums: Mapping[str, LinearSums], on_matrix: OnMatrix) -> dict[str, Moments]:
    done = {}
    for name, part in sums.items():
        done[name] = _moments(name, replay.model.get_submodule(name), part, replay.units)
        on_matrix(name, done[name], part.sample(replay.units))
    return done


@contextmanager
def _hooked(model: nn.Module, hooks: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Register a forward hook on each named module while the context is open."""
    handles = [model.get_submodule(name).register_forward_hook(hook) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watching(sums: Mapping[str, LinearSums], replay: Replay) -> dict[str, Callable[..., None]]:
    """Forward hooks that add inputs and output gradients to ``sums``, without padding.

    Layers called in turn with the same tensor (qkv) share the moments and the kept positions of their inputs.
    """
    latest: list[tuple[Tensor, Tensor, LinearSums]] = []

    def hook(part: LinearSums, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.requires_grad:
            return
        if latest and latest[0][0] is inputs[0]:
            x_NI = latest[0][1]
            part.inputs = latest[0][2].inputs
        else:
            x_NI = replay.tokens_of(inputs[0].detach().flatten(0, -2))
            part.inputs.add(x_NI)
            latest[:] = [(inputs[0], x_NI, part)]
        output.register_hook(lambda grad: part.add(x_NI, replay.tokens_of(grad.detach().flatten(0, -2))))

    return {name: partial(hook, part) for name, part in sums.items()}


def _moments(name: str, module: nn.Module, sums: LinearSums, units: int) -> Moments:
    if not sums.positions:
        raise QuantError(
            f"no gradient of the loss reaches {name}: the task does not use it, so it cannot be measured"
        )
    inputs, gradient_OI = sums.inputs, sums.gradient_OI / units
    _check_finite(name, sums.row_O, inputs.mean_II, gradient_OI)
    weight_OI = weight_of(module).float()
    empty = torch.zeros(0)
    return Moments(
        row_O=(sums.row_O / units).cpu(),
        column_I=inputs.mean_II.diagonal().clone().cpu(),
        gradient_K=singular_values(gradient_OI)[:SPECTRUM].float().cpu(),
        input_K=inputs.values_I[:SPECTRUM].clone(),  # safetensors refuses tensors that share storage
        importance=float((weight_OI * gradient_OI).abs().mean()),
        norm=float(weight_OI.norm()),
        head_row_O=empty,
        head_column_I=empty,
    )


def _check_finite(name: str, *parts: Tensor) -> None:
    if not all(bool(torch.isfinite(part).all()) for part in parts):
        raise QuantError(
            f"the gradients of {name} on the calibration data are not finite; check weights and data"
        )


class _Outside:
    """Statistics of everything outside the blocks: linear matrices, embedding tables and tied heads.

    The rows of a table are weighted by look-up frequency, its columns by the gradient of the looked-up rows.
    Tied heads have moments of their own.
    """

    def __init__(
        self, replay: Replay, matrices: Sequence[WeightMatrix], sharing: Sequence[WeightMatrix]
    ) -> None:
        self._replay, batches = replay, len(replay.batches)
        heads = [m for m in sharing if m.role != "embedding"]
        self._linear = {
            m.name: LinearSums(positions_a_batch(batches, sum(m.shape)))
            for m in matrices
            if m.role != "embedding"
        }
        self._tables = {
            m.name: Lookups(m.shape, positions_a_batch(batches)) for m in matrices if m.role == "embedding"
        }
        self._looking = dict(self._tables)  # by embedding module; several modules may share a table
        self._looking |= {m.name: self._tables[str(m.tied_to)] for m in sharing if m.role == "embedding"}
        self._heads = {str(m.tied_to): (m.name, _HeadSums(m.shape)) for m in heads}

    @contextmanager
    def gathering(self, tables: bool) -> Iterator[None]:
        """Collect statistics while the context is open.

        ``tables`` is true for the one pass that runs the embeddings, so that look-ups are counted once.
        """
        hooks: dict[str, Callable[..., Any]] = {}
        replay = self._replay
        hooks |= _watching(self._linear, replay)
        hooks |= {name: partial(sums.hook, replay) for name, sums in self._heads.values()}
        looking = self._looking if tables else {}
        with _hooked(replay.model, hooks), watched_lookups(replay.model, looking, replay.tokens_of):
            yield

    def moments(self, on_matrix: OnMatrix) -> dict[str, Moments]:
        units, found = self._replay.units, {}
        for name, lookups in self._tables.items():
            found[name] = self._table(name, lookups, units)
            on_matrix(name, found[name], lookups.sample(units))
        return found | _finished(self._replay, self._linear, on_matrix)

    def _table(self, name: str, lookups: Lookups, units: int) -> Moments:
        empty = torch.zeros(0)
        weight_VD = weight_of(self._replay.model.get_submodule(name))
        # Some rows at a time: a table is never converted to fp32 as a whole.
        norm = sum(float(part.float().square().sum()) for part in weight_VD.split(_ROWS)) ** 0.5
        head = self._heads[name][1].pair(units) if name in self._heads else (empty, empty)
        _check_finite(name, lookups.column_D, *head)
        return Moments(lookups.frequency_V(), lookups.column_D / units, empty, empty, 0.0, norm, *head)


class _HeadSums:
    """Running sums of a tied head: row and column moments, without the unused (vocabulary, in) gradient."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._row_O, self._column_I = torch.zeros(shape[0]), torch.zeros(shape[1])
        self._positions = 0

    def hook(self, replay: Replay, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook, active in passes whose gradient flows through the head."""
        if output.requires_grad:
            x_NI = replay.tokens_of(inputs[0].detach().flatten(0, -2))
            self._column_I += x_NI.float().square().sum(0).cpu()
            self._positions += len(x_NI)
            output.register_hook(add_squares(self._row_O))

    def pair(self, units: int) -> tuple[Tensor, Tensor]:
        return self._row_O / units, self._column_I / self._positions


def weight_of(module: nn.Module) -> Tensor:
    """The (out, in) weight of a linear layer, ``Conv1D`` or embedding.

    It keeps its stored dtype if it is a float, else it is decoded to the layer's compute dtype.
    """
    if isinstance(module, (QuantLinear, QuantEmbedding)):
        held: Tensor | None = module.quantized.tensors.get("weight")
        return module.quantized.decode() if held is None else held
    weight: Tensor = module.weight.detach()  # type: ignore[union-attr,assignment,operator]
    return weight.T if isinstance(module, Conv1D) else weight


def compute_dtype(module: nn.Module) -> torch.dtype:
    """The dtype in which a linear layer or ``Conv1D`` multiplies, or an embedding returns its rows."""
    if isinstance(module, (QuantLinear, QuantEmbedding)):
        return module.quantized.compute_dtype
    dtype: torch.dtype = module.weight.dtype  # type: ignore[union-attr,assignment]
    return dtype
