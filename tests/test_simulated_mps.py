"""Measurements, starts and reductions on a simulated Apple GPU equal those on the CPU.

All checks run in one process of their own, because the simulation changes what torch finds there.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bitrank.planning.probe import DirectionSums
from bitrank_adapters import (
    ActivationStart,
    AdapterScale,
    AdapterStart,
    CordaStart,
    GradientStart,
    GradientStep,
    PrincipalStart,
    ReducedRanks,
    ResidualStart,
    adapted,
    attach_lora,
)
from bitrank_quant import parse_format, weight_matrices
from bitrank_quant.sensitivity import LayerSample, Replay, measure_moments, measure_sensitivities
from simulated_mps import install, simulated_mps
from torch import Tensor, nn
from torch.utils._pytree import tree_map

FORMATS = [parse_format(text) for text in ("int3-g64", "int4-g64-dq", "nf4-dq", "int8", "bf16")]
MATRIX = "model.layers.1.self_attn.q_proj"
RANK = 4
Check = Callable[..., Any]  # takes a device, returns nested containers of tensors and numbers


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1]))  # the child imports this file as `tests.…`
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), install) as pool:
            yield pool


def difference(check: Check, *options: str) -> str:
    """What ``check`` finds on one device and not on the other; "" for nothing."""
    torch.set_num_threads(1)
    on_cpu = check(torch.device("cpu"), *options)
    with simulated_mps():
        on_mps = tree_map(_fetched, check(torch.device("mps"), *options))
    try:
        torch.testing.assert_close(on_mps, on_cpu, rtol=1e-4, atol=1e-6)
    except AssertionError as error:
        return str(error)
    return ""


def _fetched(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


def model_on(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=160,  # more than the classes whose probabilities are kept
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False).to(device)
    model.tie_weights()  # a move to the simulated device unties them
    return model


def replay_on(device: torch.device) -> Replay:
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randint(0, 160, (2, 9), generator=generator).to(device) for _ in range(2)]

    def forward(model: nn.Module, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        labels_BT = ids_BT[:, 1:].clone()
        labels_BT[0, :3] = -100
        return model(input_ids=ids_BT).logits[:, :-1].flatten(0, 1), labels_BT.flatten()

    real = lambda ids_BT: [torch.ones_like(ids_BT, dtype=torch.bool)]  # noqa: E731
    return Replay(model_on(device), batches, forward, real=real)


def measured(device: torch.device, quantizer: str) -> Any:
    replay = replay_on(device)
    # Every operation of the simulation passes through Python, and gptq has many for each column.
    some = [m for m in weight_matrices(replay.model) if quantizer == "rtn" or m.name == MATRIX]
    formats = FORMATS[:1] if quantizer == "gptq" else FORMATS
    moments, errors = measure_sensitivities(replay, some, formats, quantizer)
    by_format = {name: {text: vars(one) for text, one in of.items()} for name, of in errors.items()}
    return {name: vars(one) for name, one in moments.items()}, by_format


def changed_model(device: torch.device) -> Any:
    replay = replay_on(device)
    with torch.no_grad():
        replay.model.get_submodule("model.layers.1.mlp.down_proj").weight.mul_(1.5)
    divergence = replay.divergence()
    return divergence.sums_B, replay.evaluate_from("model.layers.1"), replay.evaluate_from(None)


def start_data(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def keep(name: str, _moments: object, sample: object) -> None:
        if isinstance(sample, LayerSample):
            components = sample.inputs.components
            found[name] = components.directions_KI.abs().cpu(), components.shares_K.cpu()

    replay = replay_on(device)
    measure_moments(replay, weight_matrices(replay.model), on_matrix=keep)
    return found


def start_of(init: str, scale: AdapterScale) -> AdapterStart:
    """The start ``init`` of one matrix, with data on the CPU as runs read them from files."""
    torch.manual_seed(2)
    ranks, gradient_OI, sample_NI = {MATRIX: RANK}, torch.randn(64, 64), torch.randn(200, 64)
    second_II = sample_NI.T @ sample_NI / len(sample_NI)
    weights = {MATRIX: (torch.rand(64), torch.rand(64))}
    made: dict[str, Callable[[], AdapterStart]] = {
        "loftq": lambda: ResidualStart(ranks, rounds=2),
        "lq-lora": lambda: ResidualStart(ranks, weights=weights),
        "qera": lambda: ResidualStart(ranks, inputs=lambda name: second_II),
        "pissa": lambda: PrincipalStart(ranks),
        "corda": lambda: CordaStart(ranks, lambda name: second_II),
        "lora-ga": lambda: GradientStart(ranks, lambda name: gradient_OI, scale),
        "gora": lambda: GradientStep(ranks, lambda name: gradient_OI),
        "eva": lambda: ActivationStart(ranks, lambda name: torch.linalg.qr(gradient_OI).Q.T[:8]),
    }
    return made[init]()


def adapted_on(device: torch.device) -> Any:
    """The model with an adapter of rank 4 on one matrix, whose factors are random, and its layer."""
    model = attach_lora(model_on(torch.device("cpu")), {MATRIX: RANK})
    (layer,) = dict(adapted(model)).values()
    torch.manual_seed(3)
    for factor in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
        nn.init.normal_(factor)
    return model.to(device)


def factors_of(model: Any) -> tuple[Tensor, Tensor]:
    (layer,) = dict(adapted(model)).values()
    return layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()


def started(device: torch.device, init: str) -> Any:
    model = adapted_on(device)
    start = start_of(init, AdapterScale())
    (layer,) = dict(adapted(model)).values()
    base_OI = start.split(
        MATRIX, layer.base_layer.weight.detach(), lambda weight_OI: (8 * weight_OI).round() / 8
    )
    start.write(model)
    down_RI, up_OR = factors_of(model)
    # A singular vector may have either sign, so products are compared.
    return base_OI, up_OR @ down_RI, down_RI.norm()


def reduced(device: torch.device) -> Any:
    model = adapted_on(device)
    hook = ReducedRanks(model, target_r=2, total_steps=3)
    hook.after_step(3)
    down_RI, up_OR = factors_of(model)
    return hook.ranks(), up_OR @ down_RI


def probed(device: torch.device) -> Any:
    generator = torch.Generator().manual_seed(4)
    delta_OI, x_NI, grad_NO = (
        torch.randn(size, generator=generator) for size in ((12, 8), (20, 8), (20, 12))
    )
    sums = DirectionSums.of(delta_OI.to(device), 5)
    sums.add(x_NI.to(device), grad_NO.to(device))
    return torch.from_numpy(sums.values(7))


@pytest.mark.parametrize("quantizer", ["rtn", "search", "gptq"])
def test_measurements_equal_those_on_the_cpu(process: ProcessPoolExecutor, quantizer: str) -> None:
    assert process.submit(difference, measured, quantizer).result() == ""


@pytest.mark.parametrize("check", [changed_model, start_data, reduced, probed])
def test_divergences_data_of_starts_reduced_ranks_and_probes_equal_those_on_the_cpu(
    process: ProcessPoolExecutor, check: Check
) -> None:
    assert process.submit(difference, check).result() == ""


@pytest.mark.parametrize("init", ["loftq", "lq-lora", "qera", "pissa", "corda", "lora-ga", "gora", "eva"])
def test_starts_of_adapters_equal_those_on_the_cpu(process: ProcessPoolExecutor, init: str) -> None:
    assert process.submit(difference, started, init).result() == ""


def refusals() -> list[str]:
    """The messages of what MPS refuses, and one for each operation that it should have refused."""
    refused: dict[str, Callable[[Tensor], object]] = {
        "fp64": lambda x: x.double(),
        "fp64 in one step": lambda x: x.to("cpu", torch.float64),
        "a copy to fp64": lambda x: torch.zeros(3, 3, dtype=torch.float64).copy_(x),
        "another device": lambda x: x + torch.ones(3, 3),
        "an index on MPS": lambda x: torch.ones(3, 3)[x > 0],
        "NumPy": lambda x: x.numpy(),
        "a generator of the CPU": lambda x: x.normal_(generator=torch.Generator()),
        "eigenvalues": torch.linalg.eigvalsh,
        "eigenvectors": torch.linalg.eigh,
        "singular values": torch.linalg.svd,
    }
    missed = []
    with simulated_mps():
        for name, operation in refused.items():
            try:
                operation(torch.ones(3, 3).to("mps"))
                missed.append(name)
            except (TypeError, RuntimeError):  # NotImplementedError is a RuntimeError
                pass
    return missed


def test_the_simulation_refuses_what_mps_refuses(process: ProcessPoolExecutor) -> None:
    assert process.submit(refusals).result() == []
