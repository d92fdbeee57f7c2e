"""An adapter that started as a part of its base is refused over the whole base, and converted to fit it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitrank_adapters import (
    AdapterError,
    AdapterScale,
    CordaStart,
    FixedRanks,
    GradientStart,
    Part,
    PartStart,
    PrincipalStart,
    ReducedRanks,
    SavedAdapter,
    adapted,
    attach_lora,
    over_whole_base,
    read_adapter,
    write_adapter,
)
from coarse_base import effective_weight, exact, split_model
from peft import PeftModel
from torch import Tensor

SCALE = AdapterScale(3.0, "rslora")
STARTS: dict[str, Callable[[dict[str, int]], PartStart]] = {
    "pissa": PrincipalStart,
    "corda": lambda ranks: CordaStart(ranks, lambda name: torch.eye(64 if "down" in name else 32)),
    "lora-ga": lambda ranks: GradientStart(ranks, lambda name: _gradient(name), SCALE),
}


def _gradient(name: str) -> Tensor:
    shape = (64, 32) if "up_proj" in name else (32, 64) if "down" in name else (32, 32)
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(name)))


def trained(make, names: list[str], init: str, ranks: dict[str, int]):
    """A model whose adapters started by ``init`` and moved, the parts, and the matrices before the split."""
    model, start = make("llama"), STARTS[init](ranks)
    before = split_model(model, start, names, exact)
    taken = start.taken
    model = attach_lora(model, ranks, scale=SCALE)
    start.write(model)
    with torch.no_grad():
        for _, layer in adapted(model):
            layer.lora_B["default"].weight += 0.1 * torch.randn_like(layer.lora_B["default"].weight)
    return model, taken, before


@pytest.mark.parametrize("init", STARTS)
def test_the_adapter_is_refused_over_the_whole_base(make, blocks, tmp_path: Path, init: str) -> None:
    names = blocks["llama"]
    model, _, _ = trained(make, names, init, {name: 2 + n % 3 for n, name in enumerate(names)})
    FixedRanks(model).save(tmp_path)
    with pytest.raises(AdapterError, match=r"started as a part of its base, .* Give the folder of the run"):
        read_adapter(tmp_path)
    with pytest.raises(ValueError, match="Unknown initialization init_lora_weights='taken-from-the-base'"):
        PeftModel.from_pretrained(make("llama"), str(tmp_path))
    assert read_adapter(tmp_path, has_its_base=True).parts.keys() == set(names)


def test_a_program_with_the_split_base_loads_the_adapter(make, blocks, ids, tmp_path: Path) -> None:
    names = blocks["llama"]
    model, taken, _ = trained(make, names, "pissa", dict.fromkeys(names, 4))
    hook = FixedRanks(model)
    hook.save(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"init_lora_weights": True}))
    base = make("llama")
    for name, part in taken.items():
        base.get_submodule(name).weight.data -= part.up_OR @ part.down_RI
    stock = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    with hook.as_stored(), torch.no_grad():
        assert torch.allclose(stock(input_ids=ids).logits, model.eval()(input_ids=ids).logits, atol=1e-4)


@pytest.mark.parametrize("init", STARTS)
def test_the_converted_adapter_is_the_difference_and_stock_peft_loads_it(
    make, blocks, tmp_path: Path, init: str
) -> None:
    """W − s B₀ A₀ + s B A, over the unquantized W."""
    names = blocks["llama"]
    model, taken, before = trained(make, names, init, {name: 2 + n % 3 for n, name in enumerate(names)})
    hook, source, made = FixedRanks(model), tmp_path / "run", tmp_path / "made"
    hook.save(source)
    made.mkdir()
    write_adapter(over_whole_base(read_adapter(source, has_its_base=True), taken), source, made)
    stock = PeftModel.from_pretrained(make("llama"), str(made))
    layers = dict(adapted(stock))
    assert {name: layer.r["default"] for name, layer in layers.items()} == {
        name: 2 * rank for name, rank in hook.ranks().items()
    }
    with hook.as_stored():
        for name, layer in adapted(model):
            first_OI = taken[name].up_OR @ taken[name].down_RI
            expected_OI = before[name] - first_OI + layer.get_delta_weight("default")
            assert torch.allclose(effective_weight(layers[name]), expected_OI, atol=1e-5)
            assert torch.allclose(effective_weight(layer), expected_OI, atol=1e-5)
    assert read_adapter(made).parts.keys() == set(names)


def test_reduced_adapters_are_marked_and_converted_too(make, blocks, tmp_path: Path) -> None:
    names = blocks["llama"]
    model, taken, before = trained(make, names, "pissa", dict.fromkeys(names, 8))
    hook, source = ReducedRanks(model, 2, total_steps=1), tmp_path / "run"
    hook.after_step(1)
    hook.save(source)
    with pytest.raises(AdapterError, match="started as a part of its base"):
        read_adapter(source)
    saved = over_whole_base(read_adapter(source, has_its_base=True), taken)
    with hook.as_stored():
        for name, layer in adapted(model):
            found_OI = before[name] + saved.parts[name].product()
            assert torch.allclose(effective_weight(layer), found_OI, atol=1e-4)


def test_a_matrix_whose_adapter_lost_every_rank_loses_its_part() -> None:
    part = Part(torch.ones(3, 1), torch.ones(1, 2))
    saved = over_whole_base(SavedAdapter({}, {}), {"m": part})
    assert torch.equal(saved.parts["m"].product(), -torch.ones(3, 2))
