"""Arithmetic of ``benchmarks/export_proofs.py``: rounding as ggml does it, comparisons and tables."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def proofs() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return importlib.import_module("export_proofs")


@pytest.fixture(scope="module")
def clients(proofs: ModuleType) -> ModuleType:
    return importlib.import_module("export_clients")


def successor(input_ids: torch.Tensor) -> Any:
    """A model with logit 1 for the next number, 0.75 for the one after it, and 0 for the other three."""
    ids = input_ids[0]
    logits_TV = torch.zeros(len(ids), 5)
    logits_TV[torch.arange(len(ids)), (ids + 1) % 5] = 1.0
    logits_TV[torch.arange(len(ids)), (ids + 2) % 5] = 0.75
    return SimpleNamespace(logits=logits_TV[None])


def test_inputs_are_rounded_in_blocks_by_the_type_of_the_matrix(clients: ModuleType) -> None:
    values = torch.zeros(2, 32)
    values[0, :3] = torch.tensor([127.0, 2.4, -0.6])
    rounded = clients.rounding_of("Q4_1")(values)
    assert rounded[0, :3].tolist() == [127.0, 2.0, -1.0] and not rounded[1].any()
    assert torch.equal(clients.rounding_of("F32")(values), values)
    assert clients.rounding_of("BF16")(torch.tensor([1.00390625])).tolist() == [1.0]
    wide = torch.zeros(1, 256)
    wide[0, 0], wide[0, 255] = 127.0, 0.6
    assert clients.rounding_of("Q6_K")(wide)[0, 255] == 1.0, "one scale for 256 numbers"


def test_updates_of_an_adapter_multiply_exact_inputs(clients: ModuleType) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(32, 1, bias=False))
    torch.nn.init.ones_(model[0].weight)
    values = torch.zeros(1, 32)
    values[0, :2] = torch.tensor([127.0, 0.4])
    rounded = clients.rounded_inputs(model, {"0": "Q8_0"}, {"0": torch.full((1, 32), 10.0)})
    assert rounded(values).item() == pytest.approx(127.0 + 1274.0)


def test_tokens_and_losses_of_a_client_are_compared_with_ours(proofs: ModuleType) -> None:
    questions = proofs.Questions([[0, 1, 2]], [[0, 1], [3]], 2)
    loss = math.log(math.e + math.exp(0.75) + 3) - 1
    found = proofs.Answers([[loss, loss + 0.02]], [[2, 3], [4, 1]])
    compared = proofs.compare("exact", successor, questions, found)
    assert compared.ours == pytest.approx(loss) and compared.theirs == pytest.approx(loss + 0.01)
    assert (compared.equal, compared.prompts, compared.gap) == (1, 2, 0.25)


def test_tables_have_the_header_the_lost_nats_and_the_difference(proofs: ModuleType) -> None:
    compared = proofs.Compared("exact", math.log(20.0), math.log(20.1), 5, 6, 0.25)
    proof = proofs.Proof("gguf", 1000, 990, 0, 64, 3.0, 3.2, 3.01, [compared])
    run = SimpleNamespace(
        spec=SimpleNamespace(model="tiny", steps=7),
        precision={"a": "int8", "b": "int8"},
        ranks={"a": 2, "b": 4},
    )
    text = proofs.result_text(run, [proof], proofs.Questions([[1, 2, 3]], [[1]], 4))
    assert "## tiny: 2 × int8" in text and "(2 predicted tokens)" in text
    assert "| gguf | 1,000 | 990 | -10 | 64 | 0 |" in text
    assert "| gguf | 3.0000 | +0.2000 | +0.0100 |" in text
    assert "| gguf | exact | 20.000 | 20.100 | +0.50 % | 5 of 6 | 0.25 |" in text


def test_unknown_exports_are_refused(proofs: ModuleType, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        proofs._parse(["run", "--exports", "gguf,nothing"])
    assert "expected some of gguf, gguf+lora, mlx, mlx+lora" in capsys.readouterr().err
