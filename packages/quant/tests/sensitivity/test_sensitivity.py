"""Moments, weight errors, tails and true added loss against plain reference computations."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from bitrank_quant import QuantError, apply_precision, parse_format, weight_matrices
from bitrank_quant.sensitivity import (
    Replay,
    measure_divergences,
    measure_moments,
    measure_sensitivities,
    weight_of,
)
from bitrank_quant.sensitivity.divergence import (
    LIKELIEST,
    Divergence,
    TopPredictions,
    loss_and_divergence,
    top_predictions,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

FORMATS = [parse_format(text) for text in ("int2-g64", "int4-g64", "nf4", "int8", "bf16")]

ROUNDING = 5e-6  # nats: rounding error of the fp32 normalisers of five positions


def llama(tied: bool = True) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def bert() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=97, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4
    )
    return BertForSequenceClassification(config).eval().requires_grad_(False)


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return (
        GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=64, n_layer=3, n_head=4, n_positions=32))
        .eval()
        .requires_grad_(False)
    )


def roberta() -> nn.Module:
    """A model with two consecutive linear layers after the blocks."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    return RobertaForSequenceClassification(config).eval().requires_grad_(False)


class Forked(nn.Module):
    """A Llama whose blocks all get the embeddings as well, so that they do not form a chain."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = llama()
        for layer in self.inner.model.layers:  # type: ignore[union-attr]
            layer.register_forward_pre_hook(self._more)

    def _more(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] * 1.0 + 0.1 * self._embedded, *args[1:])

    def forward(self, input_ids: Tensor) -> Any:
        self._embedded = self.inner.model.embed_tokens(input_ids)  # type: ignore[union-attr,operator]
        return self.inner(inputs_embeds=self._embedded)


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 97, (4, 10), generator=generator) for _ in range(count)]


def logits_and_labels(model: nn.Module, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(input_ids=ids_BL).logits
    if logits.ndim == 2:
        return logits, ids_BL[:, 0] % 2
    return logits.flatten(0, 1), F.pad(ids_BL[:, 1:], (0, 1), value=-100).flatten()


def loss_sum(model: nn.Module, ids_BL: Tensor) -> tuple[Tensor, int]:
    logits_NC, labels_N = logits_and_labels(model, ids_BL)
    keep_N = labels_N != -100
    return F.cross_entropy(logits_NC[keep_N].float(), labels_N[keep_N], reduction="sum"), int(keep_N.sum())


def mean_loss(model: nn.Module) -> float:
    parts = [loss_sum(model, batch) for batch in batches()]
    return float(sum(loss for loss, _ in parts) / sum(count for _, count in parts))


@pytest.fixture(params=[llama, bert], ids=["llama", "bert"])
def measured(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    model = request.param()
    before = {name: p.clone() for name, p in model.named_parameters()}
    replay = Replay(model, batches(), logits_and_labels)
    matrices = [m for m in weight_matrices(model) if m.name != "classifier"]
    moments, errors = measure_sensitivities(replay, matrices, FORMATS)
    alone = measure_divergences(replay, matrices, FORMATS)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters()), (
        "measuring changed the model"
    )
    yield {
        "model": model,
        "replay": replay,
        "moments": moments,
        "errors": errors,
        "alone": alone,
        "matrices": {m.name: m for m in matrices},
    }


def gradient_of(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name).weight.requires_grad_(True)
    parts = [loss_sum(model, batch) for batch in batches()]
    (sum(loss for loss, _ in parts) / sum(count for _, count in parts)).backward()
    grad, weight.grad = weight.grad, None
    weight.requires_grad_(False)
    assert grad is not None
    return grad


def linear(measured: dict[str, Any]) -> list[str]:
    return [name for name, m in measured["matrices"].items() if m.role != "embedding" and m.tied_to is None]


def test_replay_from_any_block_is_the_whole_model(measured: dict[str, Any]) -> None:
    replay = measured["replay"]
    assert len(replay.order) == 4
    for block in (*replay.order, None):
        assert replay.evaluate_from(block)[0] == pytest.approx(mean_loss(measured["model"]), abs=1e-6)


def test_table_moments_are_look_up_counts_and_squared_output_gradients(
    measured: dict[str, Any],
) -> None:
    model, moments = measured["model"], measured["moments"]
    tables = [name for name, matrix in measured["matrices"].items() if matrix.role == "embedding"]
    assert len(tables) == (1 if type(model).__name__ == "LlamaForCausalLM" else 3)
    for name in tables:
        table, seen = model.get_submodule(name), []
        counts_V, column_D, units = torch.zeros(table.weight.shape[0]), torch.zeros(table.weight.shape[1]), 0

        def keep(
            _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, seen: list[Any] = seen
        ) -> Tensor:
            seen.append((inputs[0], output.detach().requires_grad_()))
            return seen[-1][1]

        handle = table.register_forward_hook(keep)
        for batch in batches():
            loss, count = loss_sum(model, batch)
            ids, leaf = seen.pop()
            (grad,) = torch.autograd.grad(loss, leaf)
            column_D += grad.flatten(0, -2).square().sum(0)
            for place in ids.flatten().tolist():
                counts_V[place] += 1
            units += count
        handle.remove()
        assert torch.allclose(moments[name].column_I, column_D / units, rtol=1e-5)
        assert torch.allclose(
            moments[name].row_O, (counts_V + 1 / len(counts_V)) / (counts_V.sum() + 1), rtol=1e-5
        )


def test_gradient_spectrum_is_that_of_autograd(measured: dict[str, Any]) -> None:
    for name in linear(measured):
        wanted = torch.linalg.svdvals(gradient_of(measured["model"], name).double())
        found = measured["moments"][name].gradient_K.double()
        assert torch.allclose(found, wanted[: len(found)], rtol=1e-3, atol=1e-6 * float(wanted[0])), name


def test_input_spectrum_is_that_of_each_matrix_own_inputs(measured: dict[str, Any]) -> None:
    model, seen = measured["model"], {}
    names = linear(measured)
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _m, inputs, _o, name=name: seen[name].append(inputs[0].flatten(0, -2))
        )
        for name in names
    ]
    seen = {name: [] for name in names}
    for batch in batches():
        model(input_ids=batch)
    for hook in hooks:
        hook.remove()
    for name in names:
        x_NI = torch.cat(seen[name]).double()
        wanted_K = torch.linalg.eigvalsh(x_NI.T @ x_NI / len(x_NI)).flip(0)
        found_K = measured["moments"][name].input_K.double()
        assert len(found_K) == min(128, len(wanted_K))
        assert torch.allclose(found_K, wanted_K[: len(found_K)], rtol=1e-4, atol=1e-5 * float(wanted_K[0])), (
            name
        )


def keep(seen: dict[str, Tensor], name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
    seen[name] = output


@pytest.mark.parametrize("make", [llama, bert, gpt2, roberta, Forked])
def test_row_moments_of_the_sweep_equal_those_of_autograd(make: Any) -> None:
    """Row moments of every linear matrix against one autograd graph of the whole model, chained or not."""
    model = make().eval()
    replay = Replay(model, batches(), logits_and_labels)
    assert replay.chained == (make is not Forked)
    matrices = weight_matrices(model)
    moments = measure_moments(replay, matrices)
    owned = [m.name for m in matrices if m.tied_to is None]
    assert list(moments) == owned
    names = [m.name for m in matrices if m.tied_to is None and m.role != "embedding"]
    wanted = {name: torch.zeros(len(moments[name].row_O)) for name in names}
    units = 0
    for batch in batches():
        seen: dict[str, Tensor] = {}
        tables = [model.get_submodule(m.name) for m in matrices if m.role == "embedding"]
        hooks = [table.register_forward_hook(lambda *called: called[2].requires_grad_()) for table in tables]
        hooks += [
            model.get_submodule(name).register_forward_hook(partial(keep, seen, name)) for name in names
        ]
        loss, count = loss_sum(model, batch)
        for name, grad in zip(names, torch.autograd.grad(loss, [seen[name] for name in names]), strict=True):
            wanted[name] += grad.flatten(0, -2).square().sum(0)
        units += count
        for hook in hooks:
            hook.remove()
    for name in names:
        assert torch.allclose(
            moments[name].row_O,
            wanted[name] / units,
            rtol=1e-3,
            atol=1e-5 * float(wanted[name].max() / units),
        ), name


def test_a_matrix_that_the_task_does_not_use_is_named() -> None:
    model = llama()
    model.spare = nn.Linear(8, 8)
    with pytest.raises(QuantError, match="no gradient of the loss reaches spare"):
        measure_moments(Replay(model, batches(), logits_and_labels), weight_matrices(model))


@pytest.mark.parametrize("make", [llama, bert, gpt2])
def test_a_model_stored_in_16_bits_measures_like_one_in_32(make: Any) -> None:
    """For weights that are exact in 16 bits. Nothing is converted to 32 bits, and the model is restored."""
    found = []
    for narrow in (False, True):
        model = make()
        matrices = weight_matrices(model)
        for matrix in matrices:
            weight = model.get_submodule(matrix.name).weight
            weight.data = weight.data.bfloat16().float()
        if narrow:
            apply_precision(
                model, {m.name: "bf16" for m in matrices if m.tied_to is None}, compute_dtype=torch.float32
            )
        before = {name: module for name, module in model.named_modules() if not list(module.children())}
        replay = Replay(model, batches(), logits_and_labels)
        found.append(
            (
                measure_sensitivities(replay, matrices, FORMATS)[1],
                measure_divergences(replay, matrices, FORMATS),
            )
        )
        assert {
            name: module for name, module in model.named_modules() if not list(module.children())
        } == before
        if narrow:
            assert all(weight_of(model.get_submodule(m.name)).dtype == torch.bfloat16 for m in matrices)
    (wide, wide_alone), (narrow, narrow_alone) = found
    assert list(wide) == list(narrow)
    for name, by_format in wide.items():
        for text in map(str, FORMATS):
            one, other = by_format[text], narrow[name][text]
            assert one.nbytes == other.nbytes
            assert (one.plain, one.input, one.fisher, one.output) == pytest.approx(
                (other.plain, other.input, other.fisher, other.output), rel=1e-4
            )
            assert wide_alone[name][text] == pytest.approx(narrow_alone[name][text], abs=2e-6)
            assert torch.allclose(one.tail_R, other.tail_R, rtol=1e-3, atol=1e-9)


def test_importance_and_norm_equal_their_definitions(measured: dict[str, Any]) -> None:
    for name in linear(measured)[:3]:
        weight = measured["model"].get_submodule(name).weight
        moments = measured["moments"][name]
        assert moments.importance == pytest.approx(
            float((weight * gradient_of(measured["model"], name)).abs().mean()), rel=1e-3
        )
        assert moments.norm == pytest.approx(float(weight.norm()), rel=1e-6)


def test_weight_errors_are_their_formulas(measured: dict[str, Any]) -> None:
    for name, by_format in measured["errors"].items():
        weight_OI = measured["model"].get_submodule(name).weight
        moments = measured["moments"][name]
        for fmt in FORMATS:
            errors = by_format[str(fmt)]
            stored_OI = fmt.decode(fmt.encode(weight_OI), tuple(weight_OI.shape), weight_OI.dtype)
            square_OI = (
                (weight_OI - stored_OI).double().square()
                if str(fmt) != "bf16"
                else torch.zeros_like(weight_OI).double()
            )
            fisher = sum(
                0.5 * row_O.double() @ square_OI @ column_I.double() for row_O, column_I in moments.weights()
            )
            assert errors.nbytes == fmt.nbytes(tuple(weight_OI.shape))
            assert errors.plain == pytest.approx(float(square_OI.sum()), rel=1e-4, abs=1e-12)
            assert errors.input == pytest.approx(
                float((square_OI @ moments.column_I.double()).sum()), rel=1e-4, abs=1e-12
            )
            assert errors.fisher == pytest.approx(float(fisher), rel=1e-4, abs=1e-12)


def at_each_position(model: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """Inputs (or ids) and gradients of the outputs of a module at every position, from one graph."""
    module, found = model.get_submodule(name), []

    def keep_leaf(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        found.append((inputs[0].detach(), leaf))
        return leaf

    handle = module.register_forward_hook(keep_leaf)
    for batch in batches():
        loss_sum(model, batch)[0].backward()
    handle.remove()
    inputs = torch.cat([given.flatten(0, -2 if given.is_floating_point() else -1) for given, _ in found])
    return inputs, torch.cat([leaf.grad.flatten(0, -2) for _, leaf in found])  # type: ignore[union-attr]


def error_of(measured: dict[str, Any], name: str, fmt: Any) -> Tensor:
    """Ŵ − W in fp64."""
    weight_OI = measured["model"].get_submodule(name).weight
    stored_OI = fmt.decode(fmt.encode(weight_OI), tuple(weight_OI.shape), weight_OI.dtype)
    return (stored_OI - weight_OI).double()


def test_output_error_is_summed_position_by_position(measured: dict[str, Any]) -> None:
    model, units = measured["model"], measured["replay"].units
    for name, matrix in measured["matrices"].items():
        if matrix.tied_to is not None:
            continue
        inputs, grad_NO = at_each_position(model, name)
        for fmt in FORMATS[:4]:
            delta_OI, score = error_of(measured, name, fmt), 0.0
            for one, grad_O in zip(inputs, grad_NO.double(), strict=True):
                moved_O = delta_OI @ one.double() if one.is_floating_point() else delta_OI[one]
                score += 0.5 * float((grad_O * moved_O).square().sum()) / units
            moments = measured["moments"][name]
            if len(moments.head_row_O):
                head = moments.head_row_O.double() @ delta_OI.square() @ moments.head_column_I.double()
                score += 0.5 * float(head)
            assert measured["errors"][name][str(fmt)].output == pytest.approx(score, rel=1e-3, abs=1e-12), (
                name
            )


@pytest.mark.parametrize("limit", [1, 7, 40])
def test_sampled_positions_estimate_the_same_score(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over the sampled positions stands for all of them; a sample of all is exact."""
    model = llama()
    matrices = [m for m in weight_matrices(model) if m.layer is not None]
    replay = Replay(model, batches(), logits_and_labels)
    monkeypatch.setattr("bitrank_quant.sensitivity.samples.TOKENS", 3 * limit)
    _, errors = measure_sensitivities(replay, matrices, FORMATS[:1])
    name, fmt = matrices[-1].name, FORMATS[0]
    x_NI, grad_NO = at_each_position(model, name)
    delta_OI = error_of({"model": model}, name, fmt)
    squares_N = (grad_NO.double() * (x_NI.double() @ delta_OI.T)).square().sum(1)
    kept = [40 * batch + place * 40 // limit for batch in range(3) for place in range(limit)]
    wanted = 0.5 * float(squares_N[kept].mean()) * len(squares_N) / replay.units
    assert errors[name][str(fmt)].output == pytest.approx(wanted, rel=1e-3)


def test_one_sweep_computes_every_block_once_for_any_formats() -> None:
    """Once for its gradients after the recorded forward pass: no pass for a matrix or a format."""
    model = llama()
    replay = Replay(model, batches(), logits_and_labels)
    calls: list[nn.Module] = []
    for block in model.model.layers:  # type: ignore[union-attr]
        # A projection, since blocks that only repeat their recorded output are called as well.
        block.mlp.up_proj.register_forward_pre_hook(lambda module, _inputs: calls.append(module))
    for formats in (FORMATS[:1], FORMATS):
        calls.clear()
        measure_sensitivities(replay, weight_matrices(model), formats)
        assert len(calls) == 4 * len(batches())


def test_tails_are_the_loss_left_after_the_best_correction(measured: dict[str, Any]) -> None:
    """Against a dense SVD of diag(√row) Δ R^½, R over the inputs of this matrix."""
    for name in linear(measured):
        x_NI, _ = at_each_position(measured["model"], name)
        second_II = (x_NI.double().T @ x_NI.double()) / len(x_NI)
        values_I, vectors_II = torch.linalg.eigh(second_II)
        root_II = (vectors_II * values_I.clamp_min(0).sqrt()) @ vectors_II.T
        for fmt in (FORMATS[0], FORMATS[1]):
            row_O = measured["moments"][name].row_O.double()
            weighted_OI = row_O.sqrt()[:, None] * error_of(measured, name, fmt) @ root_II
            energy_K = torch.linalg.svdvals(weighted_OI).square()
            tail_R = measured["errors"][name][str(fmt)].tail_R.double()
            wanted_R = 0.5 * torch.tensor(
                [float(energy_K[rank:].sum()) for rank in range(len(tail_R))], dtype=torch.float64
            )
            assert len(tail_R) == min(128, *weighted_OI.shape) + 1
            assert torch.allclose(tail_R, wanted_R, rtol=1e-3, atol=1e-4 * float(wanted_R[0])), name
            assert (tail_R.diff() <= 1e-12).all()


def test_quantizers_get_the_moments_of_each_layer_and_change_its_errors() -> None:
    model = llama()
    replay, matrices = Replay(model, batches(), logits_and_labels), weight_matrices(model)
    by_quantizer = {
        name: measure_sensitivities(replay, matrices, FORMATS[:1], name)[1]
        for name in ("rtn", "search", "gptq")
    }
    for matrix in (m for m in matrices if m.layer is not None):
        found = {name: errors[matrix.name]["int2-g64"] for name, errors in by_quantizer.items()}
        assert found["search"].input < found["rtn"].input, matrix.name
        # The objective of GPTQ: the squared output error with all correlations of the inputs.
        assert found["gptq"].tail_R[0] < found["rtn"].tail_R[0], matrix.name
    with pytest.raises(QuantError, match="unknown quantizer"):
        measure_sensitivities(replay, matrices, FORMATS[:1], "best")


def test_paired_differences_have_the_standard_error_of_their_batches() -> None:
    one, two = Divergence((3.0, 1.0, 2.0), (10, 10, 10)), Divergence((1.0, 1.0, 1.0), (10, 10, 10))
    difference, error = one.minus(two)
    assert difference == pytest.approx(0.1)
    each = torch.tensor([0.2, 0.0, 0.1], dtype=torch.float64)
    assert error == pytest.approx(float(each.std()) / 3**0.5)
    assert one.minus(one) == (0.0, 0.0)
    assert math.isinf(Divergence((1.0,), (10,)).minus(Divergence((2.0,), (10,)))[1])
    with pytest.raises(ValueError, match="different batches"):
        one.minus(Divergence((1.0,), (10,)))


def test_divergence_by_batch_adds_up_to_that_of_all(measured: dict[str, Any]) -> None:
    model, replay = measured["model"], measured["replay"]
    weight = next(p for name, p in model.named_parameters() if "layers.0" in name or "layer.0" in name)
    kept = weight.clone()
    weight.mul_(1.5)
    found = replay.divergence()
    assert len(found.sums_B) == 3 and sum(found.counts_B) == replay.units
    assert found.mean == pytest.approx(replay.evaluate_from(None, first=True)[1], rel=1e-9) and found.mean > 0
    weight.copy_(kept)


def test_added_loss_is_that_of_the_matrix_alone(measured: dict[str, Any]) -> None:
    model, fmt = measured["model"], FORMATS[0]
    for name, by_format in measured["alone"].items():
        weight = model.get_submodule(name).weight
        kept = weight.clone()
        weight.copy_(fmt.decode(fmt.encode(weight), tuple(weight.shape), weight.dtype))
        changed = mean_loss(model)
        weight.copy_(kept)
        assert by_format[str(fmt)][0] == pytest.approx(changed - mean_loss(model), abs=2e-6), name
        assert by_format["bf16"] == (0.0, 0.0)


def test_divergence_is_that_of_the_matrix_alone(measured: dict[str, Any]) -> None:
    """Against PyTorch over all classes: equal for two classes, a close lower bound for many."""
    model, fmt = measured["model"], FORMATS[0]
    ids = torch.cat(batches())
    counts_N = logits_and_labels(model, ids)[1] >= 0

    def log_probabilities() -> Tensor:
        return logits_and_labels(model, ids)[0][counts_N].double().log_softmax(-1)

    before = log_probabilities()
    for name, by_format in measured["alone"].items():
        weight = model.get_submodule(name).weight
        kept = weight.clone()
        weight.copy_(fmt.decode(fmt.encode(weight), tuple(weight.shape), weight.dtype))
        after = log_probabilities()
        weight.copy_(kept)
        wanted = float(F.kl_div(after, before, log_target=True, reduction="batchmean"))
        divergence_of = by_format[str(fmt)][1]
        assert 0.6 * wanted - 1e-9 < divergence_of <= wanted * (1 + 1e-5) + 1e-9, name
        if before.shape[1] == 2:
            assert divergence_of == pytest.approx(wanted, rel=1e-3, abs=1e-9), name


def divergence_of(kept: TopPredictions, logits_NC: Tensor) -> float:
    return loss_and_divergence(kept, logits_NC, torch.zeros(len(logits_NC), dtype=torch.long))[1]


@given(st.integers(2, 200), st.floats(1e-4, 2.0), st.integers(0, 10**6))
def test_divergence_is_never_negative_and_a_lower_bound(classes: int, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_NC = 3 * torch.randn(5, classes, generator=generator)
    other_NC = logits_NC + size * torch.randn(5, classes, generator=generator)
    kept = top_predictions(logits_NC)
    p, q = logits_NC.double().log_softmax(-1), other_NC.double().log_softmax(-1)
    whole = float(F.kl_div(q, p, log_target=True, reduction="sum"))
    assert -ROUNDING <= divergence_of(kept, other_NC) <= whole * (1 + 1e-4) + ROUNDING
    # The sums are rounded to fp32: one more rounding for each of five positions.
    assert divergence_of(kept, logits_NC + 7.0) == pytest.approx(0.0, abs=5 * ROUNDING), (
        "a shift of all logits changes no probability"
    )
    if classes <= LIKELIEST:
        assert divergence_of(kept, other_NC) == pytest.approx(whole, rel=1e-3, abs=ROUNDING)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_does_not_depend_on_the_block_size(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    before_NC, after_NC = (torch.randn(50, 300, generator=generator).to(dtype) for _ in range(2))
    labels_N = torch.randint(0, 300, (50,), generator=generator).where(torch.arange(50) % 7 > 0, -100)
    whole = loss_and_divergence(top_predictions(before_NC), after_NC, labels_N)
    monkeypatch.setattr("bitrank_quant.sensitivity.divergence._BLOCK", 1000)  # three positions at a time
    assert loss_and_divergence(top_predictions(before_NC), after_NC, labels_N) == pytest.approx(
        whole, rel=1e-12
    )
    assert whole[0] == pytest.approx(
        float(F.cross_entropy(after_NC.float(), labels_N, reduction="sum")), rel=1e-5
    )
    labelled_N = labels_N >= 0
    alone = loss_and_divergence(
        top_predictions(before_NC[labelled_N]), after_NC[labelled_N], labels_N[labelled_N]
    )
    assert alone == pytest.approx(whole, rel=1e-12), "positions without a label must not count"


def test_padding_does_not_affect_the_loss() -> None:
    model, ids_BL = llama(), batches(1)[0]
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[:, 7:] = 0

    def padded(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
        labels_BL = F.pad(ids[:, 1:].where(mask_BL[:, 1:] > 0, -100), (0, 1), value=-100)
        return model(input_ids=ids, attention_mask=mask_BL).logits.flatten(0, 1), labels_BL.flatten()

    replay = Replay(model, [ids_BL], padded)
    changed = ids_BL.clone()
    changed[:, 7:] = 5
    replay.batches = [changed]
    assert replay.evaluate_from(None, first=True) == (
        pytest.approx(replay.base, rel=1e-6),
        pytest.approx(0.0, abs=1e-9),
    )


def test_a_tied_head_counts_twice() -> None:
    tables = []
    for tied in (True, False):
        model = llama(tied)
        if not tied:
            weight = model.model.embed_tokens.weight.clone()  # type: ignore[union-attr,operator]
            model.lm_head.weight = nn.Parameter(weight, requires_grad=False)  # type: ignore[union-attr]
        moments = measure_moments(Replay(model, batches(), logits_and_labels), weight_matrices(model))
        tables.append(
            moments["model.embed_tokens"].weights() + ([] if tied else moments["lm_head"].weights())
        )
    for (row_O, column_I), (other_O, other_I) in zip(*tables, strict=True):
        assert torch.allclose(row_O, other_O, rtol=1e-4) and torch.allclose(column_I, other_I, rtol=1e-4)


def test_empty_data_and_non_finite_losses_raise() -> None:
    with pytest.raises(QuantError, match="nothing to measure on"):
        Replay(llama(), [], logits_and_labels)
    broken = llama()
    broken.model.norm.weight.fill_(float("nan"))  # type: ignore[union-attr,operator]
    with pytest.raises(QuantError, match="expected a finite number"):
        Replay(broken, batches(), logits_and_labels)


@pytest.mark.parametrize("make", [bert, llama, gpt2], ids=["bert", "llama", "gpt2"])
def test_padding_does_not_affect_the_moments(make: Callable[[], Any]) -> None:
    """Texts of two lengths in one padded batch, against one batch per length."""
    model, generator = make(), torch.Generator().manual_seed(4)
    short_BL, long_BL = (torch.randint(3, 97, (2, length), generator=generator) for length in (5, 11))
    padded = torch.cat([F.pad(short_BL, (0, 6)), long_BL]), torch.tensor([5, 5, 11, 11])
    apart = [(short_BL, torch.tensor([5, 5])), (long_BL, torch.tensor([11, 11]))]

    def real(batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        ids_BL, length_B = batch
        return [torch.arange(ids_BL.shape[1]) < length_B[:, None]]

    def padded_forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        (mask_BL,), (ids_BL, _) = real(batch), batch
        logits = model(input_ids=ids_BL, attention_mask=mask_BL.long()).logits
        if logits.ndim == 2:
            return logits, ids_BL[:, 0] % 2
        labels_BL = F.pad(ids_BL[:, 1:].masked_fill(~mask_BL[:, 1:], -100), (0, 1), value=-100)
        return logits.flatten(0, 1), labels_BL.flatten()

    matrices = [m for m in weight_matrices(model) if "position" not in m.name and "wpe" not in m.name]
    together = measure_moments(Replay(model, [padded], padded_forward, real=real), matrices)
    wanted = measure_moments(Replay(model, apart, padded_forward, real=real), matrices)
    for name, moments in together.items():
        for key, value in vars(moments).items():
            got, expected = torch.as_tensor(value), torch.as_tensor(getattr(wanted[name], key))
            # Relative to the largest value: small eigenvalues of a spectrum are noise.
            size = float(expected.abs().max()) if expected.numel() else 0.0
            assert torch.allclose(got, expected, rtol=1e-3, atol=1e-5 * size), (name, key)


def test_moments_of_a_table_are_those_of_its_look_ups() -> None:
    """Gemma scales rows after the look-up: their gradients exceed the output's by that factor."""
    torch.manual_seed(0)
    config = GemmaConfig(
        vocab_size=97,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=32,
        tie_word_embeddings=False,
    )
    model = GemmaForCausalLM(config).eval().requires_grad_(False)
    table = model.model.embed_tokens
    plain = copy.deepcopy(model)
    plain.model.embed_tokens = nn.Embedding.from_pretrained(4.0 * table.weight)
    found, expected = ({m.name: m for m in weight_matrices(one)} for one in (model, plain))
    assert found == expected
    ours, theirs = (
        measure_moments(Replay(one, batches(), logits_and_labels), list(found.values()))["model.embed_tokens"]
        for one in (model, plain)
    )
    assert torch.equal(ours.row_O, theirs.row_O)
    torch.testing.assert_close(ours.column_I, 16.0 * theirs.column_I)
    assert type(model.model.embed_tokens) is type(table) and "Gemma" in type(table).__name__


def test_divergence_of_a_matrix_before_the_blocks_is_that_of_the_whole_model() -> None:
    torch.manual_seed(0)
    config = ElectraConfig(
        vocab_size=97, embedding_size=32, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4,
    )  # fmt: skip
    model = ElectraForSequenceClassification(config).eval().requires_grad_(False)
    replay = Replay(model, batches(), logits_and_labels)
    (matrix,) = [m for m in weight_matrices(model) if m.name == "electra.embeddings_project"]
    ((added, divergence),) = measure_divergences(replay, [matrix], FORMATS[:1])[matrix.name].values()
    apply_precision(model, {matrix.name: "int2-g64"}, compute_dtype=torch.float32)
    loss, expected = replay.evaluate_from(None, first=True)
    assert added == pytest.approx(loss - replay.base, abs=1e-6)
    assert divergence == pytest.approx(expected, rel=1e-4) and divergence > 0
