"""``import bitrank`` is light and gives the numbers of the command line and plain transformers."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path

import bitrank
import bitrank.api
import pytest
import torch
from bitrank.models.locate import locate
from bitrank_adapters import adapter_bytes, adapter_memory
from bitrank_quant import parse_format, stored_bytes, stored_weight
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
)

UP = "model.layers.0.mlp.up_proj"
EMBEDDING = "model.embed_tokens"
IDS = torch.arange(4, 16).view(2, 6)
SMOKE = {"profile": "smoke"}


def tiny(name: str = "tiny-llama"):
    kind = AutoModelForCausalLM if "llama" in name else AutoModelForSequenceClassification
    torch.manual_seed(0)
    return kind.from_pretrained(locate(name), dtype=torch.float32).eval()


def test_import_loads_no_heavy_library() -> None:
    heavy = "{'torch', 'transformers', 'peft', 'mlflow', 'duckdb', 'numpy'}"
    code = f"import sys, bitrank; print(sorted({heavy} & set(sys.modules)), dir(bitrank))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[]")
    assert all(name in done.stdout for name in bitrank.__all__)


def test_unknown_name_is_an_attribute_error_with_the_known_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantize'; it has UserError, apply, attach"):
        bitrank.quantize  # noqa: B018


def test_docstring_examples_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(bitrank.api, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 15
    assert result.failed == 0


def test_every_function_has_a_docstring_with_errors_and_an_example() -> None:
    for name in bitrank.api.__all__:
        text = getattr(bitrank, name).__doc__
        assert "Raises" in text and ">>> " in text, name


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planned")
    plan = bitrank.plan("tiny-llama", "toy_articles", "5bits", **SMOKE)
    bitrank.save_plan(plan, folder / "plan.json")
    return plan, folder / "plan.json"


def test_plan_is_plain_data_and_equals_that_of_the_command_line(planned, tmp_path) -> None:
    plan, path = planned
    assert json.loads(path.read_text()) == plan == bitrank.load_plan(path)
    arguments = [
        "plan",
        "--profile",
        "smoke",
        "--task",
        "toy_articles",
        "--model",
        "tiny-llama",
        "--budget",
        "5bits",
    ]
    command = [
        sys.executable,
        "-m",
        "bitrank",
        *arguments,
        "--init",
        "default",
        "--quantizer",
        "rtn",
        "--json",
        "--store",
        str(tmp_path),
    ]
    shown = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    same = ("precision", "ranks", "bytes", "budget", "trainable", "shapes", "predicted_added_loss", "init")
    assert {key: plan[key] for key in same} == {key: shown[key] for key in same}


def test_model_in_memory_gets_the_plan_of_its_folder_and_is_unchanged(planned) -> None:
    plan, _ = planned
    model, threads = tiny(), torch.get_num_threads()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    again = bitrank.plan(model, "toy_articles", "5bits", **SMOKE)
    assert again["precision"] == plan["precision"] and again["ranks"] == plan["ranks"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.get_num_threads() == threads


def test_planned_bytes_equal_those_after_apply_and_attach(planned) -> None:
    plan, _ = planned
    model = tiny()
    bitrank.apply(model, plan)
    adapted = bitrank.attach(model, plan)
    base = stored_bytes(adapted).total - adapter_memory(adapted)
    assert base + adapter_bytes(adapted) == plan["bytes"] <= plan["budget"]


def test_apply_gives_the_logits_of_the_decoded_weights(planned) -> None:
    plan, _ = planned
    model, reference = tiny(), tiny()
    applied = bitrank.apply(model, plan)
    assert len({applied[name].format for name in plan["precision"]}) > 2
    with torch.no_grad():
        for name in plan["precision"]:
            module = model.get_submodule(name)
            reference.get_submodule(name).weight.copy_(stored_weight(module).float())
        assert torch.allclose(model(IDS).logits, reference(IDS).logits, atol=1e-4)
        assert not torch.allclose(model(IDS).logits, tiny()(IDS).logits, atol=1e-4)


@pytest.mark.parametrize("text", ["int2-g64", "int3-g64", "int4-g64", "nf4-dq", "int8", "bf16", "fp16"])
def test_apply_stores_every_format(text: str) -> None:
    model = tiny()
    weight = model.get_submodule(UP).weight.detach().clone()
    done = bitrank.apply(model, {"precision": {UP: text, EMBEDDING: text}})
    assert done[UP].format == done[EMBEDDING].format == str(parse_format(text))
    stored = stored_weight(model.get_submodule(UP)).float()
    assert 0 < float((stored - weight).norm() / weight.norm()) < 0.7


def test_unplanned_matrices_become_16_bit_and_the_classification_head_is_unchanged() -> None:
    model = tiny("tiny-bert")
    head = model.classifier.weight.detach().clone()
    done = bitrank.apply(model, {"precision": {}})
    assert set(done.values()) and {one.format for one in done.values()} == {"bf16"}
    assert "classifier" not in done and torch.equal(model.classifier.weight, head)


def test_attach_uses_the_ranks_of_the_plan_and_the_scale_of_runs() -> None:
    model = tiny("tiny-bert")
    name = "bert.encoder.layer.1.output.dense"
    adapted = bitrank.attach(model, {"ranks": {name: 3}})
    layer = adapted.base_model.model.get_submodule(name)
    assert layer.r["default"] == 3 and layer.scaling["default"] == 2.0 * 8 / 3
    trained = {part for part, p in adapted.named_parameters() if p.requires_grad}
    assert all("lora_" in part or "classifier.modules_to_save" in part for part in trained)
    assert any("classifier.modules_to_save" in part for part in trained)


@pytest.mark.parametrize(
    ("config", "rank", "scale"), [("rsLoRA-Q4", 32, 1.0), ("EVA-Q4", 16, 2.0), ("B-Q4", 32, 0.5)]
)
def test_attach_uses_the_policy_of_scales_of_the_config_that_the_plan_names(
    config: str, rank: int, scale: float
) -> None:
    plan = {"ranks": {}, "rank_rule_of": {"config": config, "rank": rank}}
    layer = bitrank.attach(tiny(), plan, init="default").base_model.model.get_submodule(UP)
    assert layer.r["default"] == rank and layer.scaling["default"] == scale
    half = bitrank.attach(tiny(), plan, init="default", scale=1.0).base_model.model.get_submodule(UP)
    assert half.scaling["default"] == scale / 2


def test_gradients_reach_every_adapter(planned) -> None:
    plan, _ = planned
    model = tiny()
    bitrank.apply(model, plan)
    adapted = bitrank.attach(model, plan)
    adapted(IDS, labels=IDS).loss.backward()
    seconds = {name: p.grad for name, p in adapted.named_parameters() if "lora_B" in name}
    assert len(seconds) == len(plan["ranks"])
    assert all(grad is not None and grad.abs().sum() > 0 for grad in seconds.values())


def test_adaptive_plan_needs_steps_and_gives_adalora() -> None:
    plan = {"precision": {}, "ranks": {}, "adaptive": {"init_r": 6, "target_r": 2}}
    with pytest.raises(bitrank.UserError, match="give total_steps"):
        bitrank.attach(tiny(), plan)
    adapted = bitrank.attach(tiny(), plan, total_steps=30)
    assert adapted.peft_config["default"].peft_type == "ADALORA"
    assert adapted.peft_config["default"].total_step == 30


@pytest.mark.parametrize("init", ["lq-lora", "loftq"])
def test_attach_rejects_a_plan_with_residual_initialization(init: str) -> None:
    plan = {"ranks": {UP: 4}, "init": init}
    with pytest.raises(bitrank.UserError, match=f"start with init='{init}'.*bitrank run --plan"):
        bitrank.attach(tiny(), plan)
    assert bitrank.attach(tiny(), plan, init="default").peft_config["default"].r == 4


def _quantized():
    model = tiny()
    bitrank.apply(model, {"precision": {UP: "int4-g64"}})
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: bitrank.attach(tiny(), {"ranks": {UP: 4}}), "has adapters; plan its base before attach"),
        (_quantized, "is quantized; plan it before apply"),
        (
            lambda: BertModel.from_pretrained(locate("tiny-bert")),
            "cannot|has no bert|give the model with the head",
        ),
        (lambda: torch.nn.Linear(4, 4), "expected a transformers model, a name or a folder, got Linear"),
        (
            lambda: LlamaForCausalLM(LlamaConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1)),
            "give tokenizer=",
        ),
    ],
)
def test_model_that_cannot_be_planned_is_rejected_before_measuring(model, message: str) -> None:
    task = "toy_sentences" if "bert" in message else "toy_articles"
    with pytest.raises(ValueError, match=message):
        bitrank.plan(model(), task, "5bits", **SMOKE, on_progress=pytest.fail)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bitrank.plan("tiny-bert", "toy_sentences", "much", **SMOKE), "expected a budget such as"),
        (
            lambda: bitrank.plan("tiny-bert", "toy_sentences", "9MB", init="loftq", **SMOKE),
            "unknown init of a plan",
        ),
        (lambda: bitrank.plan("tiny-bert", "toy_sentenced", "9MB", **SMOKE), "toy_sentences"),
        (
            lambda: bitrank.plan("tiny-bert", "toy_sentences", "9MB", settings={"init": "lq-lora"}, **SMOKE),
            "init is no setting here: costs are those of the argument init; give init=",
        ),
        (
            lambda: bitrank.plan(
                "tiny-bert", "toy_sentences", "9MB", settings={"model": "tiny-llama"}, **SMOKE
            ),
            "model is no setting here: give the model as the first argument",
        ),
        (
            lambda: bitrank.plan(
                "tiny-bert",
                "toy_sentences",
                "9MB",
                quantizer="rtn",
                settings={"quantizer": "search"},
                **SMOKE,
            ),
            "quantizer is no setting here: give quantizer= once",
        ),
        (
            lambda: bitrank.apply(tiny(), {"precision": {UP: 4}}),
            "the plan is not a plan.*formats must be text",
        ),
        (
            lambda: bitrank.apply(tiny(), {"precision": {"model.up": "int8"}}),
            "no weight matrix of this model; nearest",
        ),
        (
            lambda: bitrank.apply(tiny(), {"precision": {UP: "int8"}, "shapes": {UP: [3, 3]}}),
            "made for another model",
        ),
        (lambda: bitrank.load_plan("nowhere.json"), "cannot read the plan 'nowhere.json'"),
        (lambda: bitrank.open_store("nowhere"), "there is no store at"),
    ],
)
def test_bad_input_raises_with_the_expected_values(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_tokenizer_can_be_given_for_a_model_in_memory(planned) -> None:
    model = tiny()
    model.config.name_or_path = ""
    tokenizer = AutoTokenizer.from_pretrained(locate("tiny-llama"))
    assert (
        bitrank.plan(model, "toy_articles", "5bits", tokenizer=tokenizer, **SMOKE)["ranks"]
        == planned[0]["ranks"]
    )


def test_open_store_gives_runs_as_a_data_frame(tmp_path: Path) -> None:
    arguments = [
        "run",
        "--profile",
        "smoke",
        "--config",
        "B-FP",
        "--task",
        "toy_sentences",
        "--max-steps",
        "1",
    ]
    command = [sys.executable, "-m", "bitrank", *arguments, "--store", str(tmp_path / "runs")]
    subprocess.run(command, capture_output=True, check=True, cwd=tmp_path)
    frame = bitrank.open_store(tmp_path / "runs").sql('SELECT run_name, "m.eval/acc" AS acc FROM wide').df()
    assert list(frame["run_name"]) == ["B-FP toy_sentences s0"]
    assert 0 <= frame["acc"][0] <= 1
