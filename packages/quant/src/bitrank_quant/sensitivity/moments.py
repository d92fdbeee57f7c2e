"""Second moments of inputs and output gradients, and the spectra of task gradient and inputs, for every matrix.

For a linear layer y = W x (W is (O, I)) and a loss that is a mean over U units, the Fisher information of W is approximated by

    F_oi ≈ row_o · column_i,    row_o = (1/U) Σ_n (∂Σloss/∂y_no)²,    column_i = (1/N) Σ_n x_ni²

over the N positions that the layer sees: the diagonals of both Kronecker factors (Martens and Grosse 2015). An error Δ of the weights
is then predicted to add ½ Σ_oi F_oi Δ_oi² nats. For an embedding a row's weight is how often its token comes (with one count spread
over all tokens, so that none is free), and a column's is the mean squared gradient of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitrank_quant.errors import QuantError
from bitrank_quant.matrices import WeightMatrix
from bitrank_quant.sensitivity.replay import Replay

SPECTRUM = 128  # singular values kept
_TOGETHER = 3  # blocks measured in one pass: what they take together stays below a small model's embedding in fp32


@dataclass(frozen=True)
class Moments:
    """Of one matrix (O, I), in fp32 on the CPU.

    ``row_O`` and ``column_I`` as above; ``gradient_K`` the singular values of the task gradient ∂loss/∂W (mean loss, nats), largest
    first; ``input_K`` the eigenvalues of the inputs' second moment matrix, largest first; ``importance`` mean |W ∘ ∂loss/∂W| (GoRA);
    ``norm`` ‖W‖_F. A head tied to an embedding adds its own pair as ``head_row_O`` and ``head_column_I`` (empty otherwise).
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
    """What one matrix gathers over the batches."""

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


def measure_moments(replay: Replay, matrices: Sequence[WeightMatrix], told: Callable[[str], None] = lambda _: None) -> dict[str, Moments]:
    """The moments of every matrix that is not a tied head, by name. ``told`` hears which block is being measured.

    Raises :class:`QuantError` when a gradient is not finite.
    """
    owned = [m for m in matrices if m.tied_to is None]
    linear = [m for m in owned if m.role != "embedding"]
    done: dict[str, Moments] = {}
    stages: list[list[str | None]] = [*_groups(replay.order), [None]]
    for blocks in stages:
        told(", ".join(block or "outside the blocks" for block in blocks))
        done |= _linear_stage(replay, blocks[0], [m for m in linear if replay.block_of(m.name) in blocks])
    heads = {m.tied_to: m for m in matrices if m.tied_to is not None}
    done |= _embeddings(replay, [m for m in owned if m.role == "embedding"], heads)
    for name, moments in done.items():
        if not all(torch.isfinite(part).all() for pair in moments.weights() for part in pair):
            raise QuantError(f"the gradients of {name} on the calibration data are not finite; check weights and data")
    return {m.name: done[m.name] for m in owned}


def _groups(order: list[str]) -> list[list[str | None]]:
    """Blocks that share a pass: each holds a gradient and an input moment for each of its matrices while the pass lasts."""
    return [list(order[start : start + _TOGETHER]) for start in range(0, len(order), _TOGETHER)]


def _linear_stage(replay: Replay, block: str | None, matrices: list[WeightMatrix]) -> dict[str, Moments]:
    """Linear matrices of a few blocks, ``block`` the first of them, in one pass: the backward pass ends where it begins."""
    if not matrices:
        return {}
    sums = {m.name: _Sums() for m in matrices}
    units = 0
    with _gathering(replay.model, sums, replay.model.get_submodule(block) if block else None):
        for loss, count in replay.losses_from(block):
            loss.backward()
            units += count
    spectra = _Spectra()
    return {m.name: _moments(replay.model.get_submodule(m.name), sums[m.name], units, spectra) for m in matrices}


class _Spectra:
    """Eigenvalues of inputs' second moments: once for neighbours that share an input, as query, key and value do."""

    def __init__(self) -> None:
        self._input_II: Tensor | None = None
        self._values_K = torch.zeros(0)

    def of(self, input_II: Tensor) -> Tensor:
        """The :data:`SPECTRUM` largest, largest first. fp32 is enough: they are shares of their sum."""
        if self._input_II is None or not torch.equal(self._input_II, input_II):
            self._input_II, self._values_K = input_II, torch.linalg.eigvalsh(input_II).flip(0).clamp_min(0)[:SPECTRUM].cpu()
        return self._values_K.clone()  # files hold no tensor twice


@contextmanager
def _gathering(model: nn.Module, sums: dict[str, _Sums], block: nn.Module | None) -> Iterator[None]:
    """Give each named module's input and output gradient to its sums; the block's input starts the graph."""
    hooks = [model.get_submodule(name).register_forward_hook(_watch(part)) for name, part in sums.items()]
    if block is not None:
        hooks.append(block.register_forward_pre_hook(_start_graph, with_kwargs=True))
    else:
        hooks += [model.get_submodule(name).register_forward_pre_hook(_start_graph, with_kwargs=True) for name in sums]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _watch(sums: _Sums) -> Callable[..., None]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x_NI = inputs[0].detach().flatten(0, -2)
        output.register_hook(lambda grad: sums.add(x_NI, grad.detach().flatten(0, -2)))

    return hook


def _start_graph(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The first tensor that goes in as a leaf that wants a gradient, so that a graph exists though every weight is frozen."""
    if args:
        return (args[0].detach().requires_grad_(), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach().requires_grad_()}


def _moments(module: nn.Module, sums: _Sums, units: int, spectra: _Spectra) -> Moments:
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


def _embeddings(replay: Replay, tables: Sequence[WeightMatrix], heads: Mapping[str, WeightMatrix]) -> dict[str, Moments]:
    """Tables' rows by how often they are looked up, their columns by the gradient of what comes out; tied heads by their own moments.

    One pass for all of them: each table's output is a leaf of the same graph.
    """
    if not tables:
        return {}
    seen = {table.name: _Lookups(table.shape) for table in tables}
    units = 0
    hooks = [replay.model.get_submodule(name).register_forward_hook(lookups.hook) for name, lookups in seen.items()]
    try:
        for loss, count in replay.losses_from(None, first=True):
            loss.backward()
            units += count
    finally:
        for hook in hooks:
            hook.remove()
    empty = torch.zeros(0)
    tied = {table: _head(replay, head) for table, head in heads.items()}
    norms = {name: float(weight_of(replay.model.get_submodule(name)).float().norm()) for name in seen}
    return {
        name: Moments(found.frequency_V(), found.column_D / units, empty, empty, 0.0, norms[name], *tied.get(name, (empty, empty)))
        for name, found in seen.items()
    }


class _Lookups:
    """What one table gathers over the batches: how often each row is looked up, and the squared gradients of what comes out."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.counts_V, self.column_D = torch.zeros(shape[0]), torch.zeros(shape[1])
        self.positions = 0

    def hook(self, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """As a forward hook: count, and let a graph begin at the output."""
        self.counts_V += torch.bincount(inputs[0].flatten().cpu(), minlength=len(self.counts_V)).float()
        self.positions += inputs[0].numel()
        leaf = output.detach().requires_grad_()
        leaf.register_hook(_add_squares(self.column_D))
        return leaf

    def frequency_V(self) -> Tensor:
        """The share of each row in all lookups, one more lookup being spread over all rows."""
        return (self.counts_V + 1 / len(self.counts_V)) / (self.positions + 1)


def _head(replay: Replay, head: WeightMatrix) -> tuple[Tensor, Tensor]:
    """Row and column moments of a tied head, without the (vocabulary, in) gradient that nobody asks for."""
    row_O, column_I = torch.zeros(head.shape[0]), torch.zeros(head.shape[1])
    seen = {"positions": 0, "units": 0}

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x_NI = inputs[0].detach().flatten(0, -2)
        column_I.add_(x_NI.float().square().sum(0).cpu())
        seen["positions"] += len(x_NI)
        output.register_hook(_add_squares(row_O))

    module = replay.model.get_submodule(head.name)
    hooks = [module.register_forward_hook(hook), module.register_forward_pre_hook(_start_graph, with_kwargs=True)]
    try:
        for loss, count in replay.losses_from(None):
            loss.backward()
            seen["units"] += count
    finally:
        for handle in hooks:
            handle.remove()
    return row_O / seen["units"], column_I / seen["positions"]


def _add_squares(total_O: Tensor) -> Callable[[Tensor], None]:
    """A gradient hook that adds the squares of each column to ``total_O``. It gives nothing back: the gradient stays what it is."""

    def hook(grad: Tensor) -> None:
        total_O.add_(grad.detach().float().flatten(0, -2).square().sum(0).cpu())

    return hook


def weight_of(module: nn.Module) -> Tensor:
    """The (out, in) weight of a linear layer, ``Conv1D`` or embedding."""
    weight: Tensor = module.weight.detach()  # type: ignore[union-attr,assignment,operator]
    return weight.T if isinstance(module, Conv1D) else weight


def singular_values(matrix_OI: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Singular values, largest first: roots of the eigenvalues of the smaller Gram matrix, many times cheaper than an SVD.

    ``dtype`` fp32 is enough for a flat spectrum, such as an error's; values below a thousandth of the largest are noise then.
    """
    tall = matrix_OI.to(dtype) if matrix_OI.shape[0] >= matrix_OI.shape[1] else matrix_OI.to(dtype).T
    return torch.linalg.eigvalsh(tall.T @ tall).flip(0).clamp_min(0).sqrt()
