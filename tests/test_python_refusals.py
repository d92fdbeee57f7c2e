"""What ``plan``, ``apply``, ``attach`` and saving refuse, and that the model is then as it was."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bitrank
import pytest
import torch
from bitrank.errors import UserError
from bitrank_quant import (
    QUANTIZERS,
    Format,
    QuantError,
    Quantizer,
    apply_precision,
    block_matrices,
    weight_matrices,
)
from bitrank_quant.formats import parse
from bitrank_quant.hf_quantizer import BitrankConfig
from peft import PeftModel
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
PLAN = {"precision": {UP: "int4-g64", DOWN: "int4-g64"}, "ranks": {UP: 4}}
IDS = torch.arange(4, 16).view(2, 6)
BATCH = {"input_ids": IDS}


def llama(blocks: int = 1) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=blocks, vocab_size=100)).eval()


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Fails if modules or tensors of ``model`` differ afterwards."""
    kinds = {name: type(module) for name, module in model.named_modules()}
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    yield
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    after = model.state_dict()
    assert after.keys() == tensors.keys()
    assert all(torch.equal(after[name], value) for name, value in tensors.items())


def by_bitsandbytes(folder: Path, **options: bool) -> Any:
    llama().save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**options))


def by_config(folder: Path) -> Any:
    llama().save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder, quantization_config=BitrankConfig(PLAN["precision"]))


def applied(_: Path | None = None, **options: Any) -> Any:
    model = llama()
    bitrank.apply(model, PLAN, **options)
    return model


@pytest.mark.parametrize(
    "made",
    [
        lambda folder: by_bitsandbytes(folder, load_in_4bit=True),
        lambda folder: by_bitsandbytes(folder, load_in_8bit=True),
        by_config,
        applied,
        lambda _: applied(quant_backend="cpu-4bit"),
        lambda _: applied(quant_backend="quanto-int8"),
    ],
    ids=["bitsandbytes-4bit", "bitsandbytes-8bit", "config", "applied", "applied-4bit", "applied-quanto"],
)
def test_apply_refuses_a_quantized_model(made: Callable[[Path], Any], tmp_path: Path) -> None:
    model = made(tmp_path)
    with unchanged(model):
        with pytest.raises(UserError, match="this model is quantized; apply the plan to a newly loaded one"):
            bitrank.apply(model, PLAN)
        with pytest.raises(UserError, match="this model is quantized; plan it before apply"):
            bitrank.plan(model, "toy_articles", "5bits", profile="smoke")
        for text in ("int8", "bf16"):
            with pytest.raises(QuantError, match="up_proj' is quantized already"):
                apply_precision(model, {UP: text})


def test_apply_refuses_a_model_with_adapters() -> None:
    adapted = bitrank.attach(llama(), PLAN)
    with unchanged(adapted), pytest.raises(UserError, match="has adapters; apply the plan to its base"):
        bitrank.apply(adapted, PLAN)


@pytest.mark.parametrize("backend", ["auto", "cpu-4bit", "none"])
def test_saving_an_applied_model_raises_and_saving_its_adapter_works(backend: str, tmp_path: Path) -> None:
    model = applied(quant_backend=backend)
    for one in (model, copy.deepcopy(model)):
        with pytest.raises(UserError, match="random weights; load the base with quantization_config=Bitrank"):
            one.save_pretrained(tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    bitrank.attach(model, PLAN).save_pretrained(tmp_path / "adapter")
    assert PeftModel.from_pretrained(applied(), tmp_path / "adapter").peft_config["default"].r == 4


def test_model_that_apply_left_in_its_dtype_can_be_saved(tmp_path: Path) -> None:
    model = llama().to(torch.bfloat16)
    bitrank.apply(model, {"precision": {}})
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_pickled_applied_model_gives_the_same_logits() -> None:
    model = applied()
    assert torch.equal(pickle.loads(pickle.dumps(model))(IDS).logits, model(IDS).logits)


def planned(**options: Any) -> Callable[[], Any]:
    return lambda: bitrank.plan(
        "tiny-bert", "toy_sentences", **{"budget": "120kB", "profile": "smoke", **options}
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (planned(budget=120_000), "budget to be text such as '120kB'.*got 120000"),
        (planned(ranks=(8.5,)), r"ranks to be whole numbers, such as \(0, 8, 16\), got \(8.5,\)"),
        (planned(ranks="8"), "ranks to be whole numbers.*got '8'"),
        (planned(ranks=8), "ranks to be whole numbers.*got 8"),
        (planned(max_rank="8"), "max_rank to be a whole number, got '8'"),
        (planned(max_trainable=1.5), "max_trainable to be a whole number, got 1.5"),
        (planned(pins={"query": "int8"}), r"pins\['query'\] to be a pair \(format or None, .*got 'int8'"),
        (planned(pins=[("query", "int8")]), "pins to be a pair by part of a name"),
        (planned(formats="int8"), "formats to be texts.*got 'int8'"),
        (planned(ties="qkv"), "ties to be texts.*got 'qkv'"),
        (planned(runtime=None), "runtime to be text, got None"),
        (planned(settings="max_length=3"), "settings to be fields by name"),
        (lambda: bitrank.apply(llama(), "plan.json"), "plan to be a plan .*load_plan.*got 'plan.json'"),
        (lambda: bitrank.attach(llama(), None), "plan to be a plan .*got None"),
        (lambda: bitrank.apply(llama(), PLAN, compute_dtype="bf16"), "compute_dtype to be a dtype"),
        (lambda: bitrank.apply(llama(), PLAN, inputs=BATCH), "inputs to be a list or DataLoader of"),
        (lambda: bitrank.apply(llama(), PLAN, inputs="text"), "DataLoader of batches.*got 'text'"),
        (lambda: bitrank.apply(llama(), PLAN, inputs=iter([BATCH])), "DataLoader of batches.*iterator"),
        (lambda: bitrank.attach(llama(), PLAN, scale="2"), "scale to be a number such as 2.0"),
        (lambda: bitrank.attach(llama(), PLAN, heads="lm_head"), "heads to be names of modules"),
        (lambda: bitrank.attach(llama(), PLAN, total_steps="3"), "total_steps to be a whole number, got '3'"),
        (lambda: bitrank.save_plan({**PLAN, "x": torch.tensor(1)}, "x.json"), "as JSON: .*Tensor.*convert"),
    ],
)
def test_argument_of_another_type_is_a_user_error(
    call: Callable[[], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        call()
    assert not list(tmp_path.iterdir())


def test_apply_calls_a_quantizer_that_ignores_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(weight_OI: Tensor, fmt: Any, moments: Any) -> Any:
        assert moments is None
        return fmt.encode(weight_OI / 2)

    monkeypatch.setitem(QUANTIZERS, "halved", Quantizer("halved", "half", halved, uses_moments=False))
    model = llama()
    bitrank.apply(model, PLAN, quantizer="halved")
    made, plain = (one.get_submodule(UP).quantized.decode() for one in (model, applied()))
    assert torch.allclose(made, plain / 2, atol=1e-3) and not torch.allclose(made, plain, atol=1e-3)


class Cube(Format):
    """A format without a grid: four bits a weight."""

    block = None
    bits = 4

    def __str__(self) -> str:
        return "cube4"


Cube.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]


def test_format_without_a_grid_is_refused_before_any_matrix_is_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(parse.FORMATS, "cube4", Cube())
    model = llama()
    with unchanged(model), pytest.raises(QuantError, match="cube4 has no grid of codes to choose from"):
        bitrank.apply(
            model, {"precision": {UP: "int4-g64", DOWN: "cube4"}}, quantizer="search", inputs=[BATCH]
        )


def test_matrix_that_no_batch_reaches_is_refused_before_any_matrix_is_stored() -> None:
    model = llama()
    model.model.layers[0].mlp.spare = nn.Linear(64, 64)
    plan = {"precision": {UP: "int4-g64", "model.layers.0.mlp.spare": "int4-g64"}}
    with unchanged(model), pytest.raises(UserError, match=r"no input of .*spare is known"):
        bitrank.apply(model, plan, quantizer="search", inputs=[BATCH])
    bitrank.apply(model, {"precision": {UP: "int4-g64"}}, quantizer="search", inputs=[BATCH])


@pytest.mark.parametrize("call", [bitrank.apply, bitrank.attach])
@pytest.mark.parametrize(
    ("blocks", "changed", "message"),
    [
        (1, {UP: [3, 3]}, "made for another model: expected .*up_proj of shape"),
        (1, {"model.layers.9.mlp.up_proj": [128, 64]}, "which does not exist in this model"),
        (2, {}, "made for a model of fewer blocks"),
    ],
)
def test_plan_for_another_model_is_refused(
    call: Callable[..., Any], blocks: int, changed: dict[str, list[int]], message: str
) -> None:
    shapes = {m.name: list(m.shape) for m in block_matrices(llama())}
    model = llama(blocks)
    with unchanged(model), pytest.raises(UserError, match=message):
        call(model, {**PLAN, "shapes": {**shapes, **changed}})


def test_plan_with_the_shapes_of_the_model_is_applied_and_attached() -> None:
    model = llama()
    plan = {**PLAN, "shapes": {m.name: list(m.shape) for m in weight_matrices(model)}}
    bitrank.apply(model, plan)
    assert bitrank.attach(model, plan).peft_config["default"].r == 4


def test_plan_is_attached_to_the_model_with_a_resized_vocabulary() -> None:
    model = llama()
    plan = {**PLAN, "shapes": {m.name: list(m.shape) for m in weight_matrices(model)}}
    model.resize_token_embeddings(110)
    with (
        unchanged(model),
        pytest.raises(UserError, match=r"embed_tokens of shape \(100, 64\), got \(110, 64\)"),
    ):
        bitrank.apply(model, plan)
    assert bitrank.attach(model, plan).peft_config["default"].r == 4
