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
from bitrank_quant.sensitivity.lookups import Lookups, add_squares, watched_lookups
from bitrank_quant.sensitivity.replay import Replay

SPECTRUM = 128  # singular values kept
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


class _Sums:
    """Running sums of one linear matrix over the batches."""

    def __init__(self) -> None:
        self.row_O: Any = 0.0
        self.column_I: Any = 0.0
        self.gradient_OI: Any = 0.0
        self.input_II: Any = 0.0
        self.positions = 0

    def add(self, x_NI: Tensor, grad_NO: Tensor) -> None:
        x_NI, grad_NO = x_NI.float(), grad_NO.float()
        self.row_O = self.row_O + grad_NO.square().sum(0)
        self.gradient_OI = self.gradient_OI + grad_NO.T @ x_NI
        self.input_II = self.input_II + x_NI.T @ x_NI
        self.positions += len(x_NI)


def measure_moments(
    replay: Replay, matrices: Sequence[WeightMatrix], on_progress: Callable[[str], None] = lambda _: None
) -> dict[str, Moments]:
    """Moments by matrix name, for every matrix that is not tied to another one.

    ``on_progress`` is called with the name of each block. If the blocks do not form a chain
    (:attr:`Replay.chained`), one backward pass collects everything, with the sums of all matrices in memory.
    Raises :class:`QuantError` if a gradient is not finite, or if none reaches a matrix.
    """
    owned = [m for m in matrices if m.tied_to is None]
    inside = {block: [m for m in owned if replay.block_of(m.name) == block] for block in replay.order}
    chained = (
        bool(replay.order)
        and replay.chained
        and not any(m.role == "embedding" for found in inside.values() for m in found)
    )
    rest = [m for m in owned if not chained or replay.block_of(m.name) is None]
    outside = _Outside(replay.model, rest, [m for m in matrices if m.tied_to is not None])
    if chained:
        done = _swept(replay, inside, outside, on_progress)
    else:
        with outside.gathering(replay, tables=True):
            replay.back_through_all()
        done = {}
    done |= outside.moments(replay)
    for name, moments in done.items():
        if not all(torch.isfinite(part).all() for pair in moments.weights() for part in pair):
            raise QuantError(
                f"the gradients of {name} on the calibration data are not finite; check weights and data"
            )
    return {m.name: done[m.name] for m in owned}


def _swept(
    replay: Replay,
    inside: Mapping[str, Sequence[WeightMatrix]],
    outside: _Outside,
    on_progress: Callable[[str], None],
) -> dict[str, Moments]:
    """Moments of the matrices inside blocks, from the last block to the first.

    ``outside`` collects the matrices outside of blocks during the same sweep.
    """
    done: dict[str, Moments] = {}
    on_progress("after the blocks")
    with outside.gathering(replay, tables=False):
        gradients = replay.back_from_loss()
    for block in reversed(replay.order):
        on_progress(block)
        sums = {m.name: _Sums() for m in inside[block]}
        with _hooked(replay.model, {name: _watch(part, replay) for name, part in sums.items()}):
            gradients = replay.back_through(block, gradients)
        done |= _finished(replay, sums)
    on_progress("before the blocks")
    with outside.gathering(replay, tables=True):
        replay.back_to_start(gradients)
    return done


def _finished(replay: Replay, sums: Mapping[str, _Sums]) -> dict[str, Moments]:
    spectra = _Spectra()
    return {
        name: _moments(name, replay.model.get_submodule(name), part, replay.units, spectra)
        for name, part in sums.items()
    }


class _Spectra:
    """Eigenvalues of input second moments, computed once for consecutive matrices with one input (qkv)."""

    def __init__(self) -> None:
        self._input_II: Tensor | None = None
        self._values_K = torch.zeros(0)

    def of(self, input_II: Tensor) -> Tensor:
        """The :data:`SPECTRUM` largest eigenvalues, largest first; fp32 is enough for shares of their sum."""
        if self._input_II is None or not torch.equal(self._input_II, input_II):
            self._input_II, self._values_K = (
                input_II,
                torch.linalg.eigvalsh(input_II).flip(0).clamp_min(0)[:SPECTRUM].cpu(),
            )
        return self._values_K.clone()  # safetensors refuses tensors that share storage


@contextmanager
def _hooked(model: nn.Module, hooks: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Register a forward hook on each named module while the context is open."""
    handles = [model.get_submodule(name).register_forward_hook(hook) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch(sums: _Sums, replay: Replay) -> Callable[..., None]:
    """A forward hook that adds a module's inputs and output gradients to ``sums``, without padding."""

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            x_NI = replay.tokens_of(inputs[0].detach().flatten(0, -2))
            output.register_hook(lambda grad: sums.add(x_NI, replay.tokens_of(grad.detach().flatten(0, -2))))

    return hook


def _moments(name: str, module: nn.Module, sums: _Sums, units: int, spectra: _Spectra) -> Moments:
    if not sums.positions:
        raise QuantError(
            f"no gradient of the loss reaches {name}: the task does not use it, so it cannot be measured"
        )
    gradient_OI = sums.gradient_OI / units
    weight_OI = weight_of(module).float()
    input_II = sums.input_II / sums.positions
    empty = torch.zeros(0)
    return Moments(
        row_O=(sums.row_O / units).cpu(),
        column_I=input_II.diagonal().clone().cpu(),
        gradient_K=singular_values(gradient_OI)[:SPECTRUM].float().cpu(),
        input_K=spectra.of(input_II),
        importance=float((weight_OI * gradient_OI).abs().mean()),
        norm=float(weight_OI.norm()),
        head_row_O=empty,
        head_column_I=empty,
    )


class _Outside:
    """Statistics of everything outside the blocks: linear matrices, embedding tables and tied heads.

    The rows of a table are weighted by look-up frequency, its columns by the gradient of the looked-up rows.
    Tied heads have moments of their own.
    """

    def __init__(
        self, model: nn.Module, matrices: Sequence[WeightMatrix], sharing: Sequence[WeightMatrix]
    ) -> None:
        self._model = model
        heads = [m for m in sharing if m.role != "embedding"]
        self._linear = {m.name: _Sums() for m in matrices if m.role != "embedding"}
        self._tables = {m.name: Lookups(m.shape) for m in matrices if m.role == "embedding"}
        self._looking = dict(self._tables)  # by embedding module; several modules may share a table
        self._looking |= {m.name: self._tables[str(m.tied_to)] for m in sharing if m.role == "embedding"}
        self._heads = {str(m.tied_to): (m.name, _HeadSums(m.shape)) for m in heads}

    @contextmanager
    def gathering(self, replay: Replay, tables: bool) -> Iterator[None]:
        """Collect statistics while the context is open.

        ``tables`` is true for the one pass that runs the embeddings, so that look-ups are counted once.
        """
        hooks: dict[str, Callable[..., Any]] = {}
        hooks |= {name: _watch(sums, replay) for name, sums in self._linear.items()}
        hooks |= {name: partial(sums.hook, replay) for name, sums in self._heads.values()}
        looking = self._looking if tables else {}
        with _hooked(self._model, hooks), watched_lookups(self._model, looking, replay.tokens_of):
            yield

    def moments(self, replay: Replay) -> dict[str, Moments]:
        found = {name: self._table(name, lookups, replay.units) for name, lookups in self._tables.items()}
        return found | _finished(replay, self._linear)

    def _table(self, name: str, lookups: Lookups, units: int) -> Moments:
        empty = torch.zeros(0)
        weight_VD = weight_of(self._model.get_submodule(name))
        # Some rows at a time: a table is never converted to fp32 as a whole.
        norm = sum(float(part.float().square().sum()) for part in weight_VD.split(_ROWS)) ** 0.5
        head = self._heads[name][1].pair(units) if name in self._heads else (empty, empty)
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


def singular_values(matrix_OI: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Singular values, largest first, as roots of the eigenvalues of the smaller Gram matrix.

    Many times cheaper than an SVD. With ``dtype`` fp32, values below a thousandth of the largest are noise,
    so it is only good enough for a flat spectrum such as that of a quantization error.
    """
    tall = matrix_OI.to(dtype) if matrix_OI.shape[0] >= matrix_OI.shape[1] else matrix_OI.to(dtype).T
    return torch.linalg.eigvalsh(tall.T @ tall).flip(0).clamp_min(0).sqrt()
