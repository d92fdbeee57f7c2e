"""Runs with residual initialization and rank removal, and their export, through the real command line."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from bitrank.cli.main import main
from bitrank.export.finished_run import find_run
from bitrank.export.merge import merge_into_16bit
from bitrank.export.rebuild import rebuild
from bitrank.export.registry import DEFAULT_QUANTIZER
from bitrank.export.requantize import requantize
from bitrank.models.locate import locate
from bitrank.process.events import read_events
from bitrank_quant import load_quantized
from bitrank_trainer import DTYPES, choose_dtype
from peft import AutoPeftModelForSequenceClassification, PeftModel
from study_tools import SMOKE, bitrank, numbers, start, store_runs, wait_for
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

SHRINKING = (
    *SMOKE,
    "--configs",
    "Joint-1",
    "--tasks",
    "toy_articles",
    "--set",
    "steps=60",
    "--set",
    "shrink=true",
    "--set",
    "init=loftq",
)
IDS = torch.randint(4, 26, (3, 9), generator=torch.Generator().manual_seed(0))
AUTO = {"toy_articles": AutoModelForCausalLM, "toy_sentences": AutoModelForSequenceClassification}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory):
    """Returns the folder of a small finished run by a short name; each run is made at first use."""
    made: dict[str, Path] = {}
    cwd = tmp_path_factory.mktemp("runs")
    modules = {
        part: [f"model.layers.{layer}.mlp.{part}_proj" for layer in range(3)]
        for part in ("up", "down", "gate")
    }
    plan = {
        "precision": dict.fromkeys([*modules["up"], *modules["down"], *modules["gate"]], "int2-g64"),
        "ranks": dict.fromkeys([*modules["up"], *modules["down"]], 4),
    }
    (cwd / "int2.json").write_text(json.dumps(plan))
    arguments = {
        "lora": ("toy_articles", "--config", "B-FP"),
        "loftq": ("toy_articles", "--config", "B-Q4", "--set", "init=loftq", "--set", "init_rounds=3"),
        "lq-lora": ("toy_articles", "--config", "B-Q4", "--set", "init=lq-lora"),
        "mixed": ("toy_sentences", "--config", "Joint-2", "--set", "init=loftq", "--set", "shrink=true"),
        "masked": ("toy_sentences", "--config", "B-Ada"),
        "conv1d": ("toy_articles", "--config", "B-Q4", "--model", "tiny-gpt2"),
        "int2": ("toy_articles", "--plan", "int2.json"),
    }

    def get(name: str) -> Path:
        if name not in made:
            done = bitrank("run", "--profile", "smoke", "--task", *arguments[name], cwd=cwd)
            assert done.returncode == 0, done.stdout + done.stderr
            (made[name],) = {path.parent for path in (cwd / "runs/work").glob("*/result.json")} - set(
                made.values()
            )
        return made[name]

    return get


def test_residual_initialization_keeps_the_zero_shot_loss_close_to_that_of_16_bits(runs) -> None:
    """That it reduces the error of every matrix is tested in ``packages/adapters``; a random model's loss
    need not improve."""
    zero = {
        name: json.loads((runs(name) / "zero_shot.json").read_text())["metrics"]["loss"]
        for name in ("lora", "loftq", "lq-lora")
    }
    assert abs(zero["loftq"] - zero["lora"]) < 0.02 and abs(zero["lq-lora"] - zero["lora"]) < 0.02


def test_killed_run_with_removed_ranks_resumes_with_equal_results(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    done = bitrank(*SHRINKING, cwd=tmp_path / "a")
    assert done.returncode == 0, done.stdout + done.stderr
    process = start(*SHRINKING, cwd=tmp_path / "b")
    folder = wait_for(tmp_path / "b", "checkpoint", 10)  # step 40; the freeze is at 36
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130
    assert not (folder / "result.json").exists(), "the run was over before the signal came: it proves nothing"
    again = bitrank(*SHRINKING, cwd=tmp_path / "b")
    assert again.returncode == 0, again.stdout + again.stderr
    (straight,), (resumed,) = store_runs(tmp_path / "a"), store_runs(tmp_path / "b")
    assert numbers(straight) == numbers(resumed)
    assert json.loads((folder / "adapter/adapter_config.json").read_text())["peft_type"] == "LORA"


@pytest.mark.parametrize("name", ["lora", "loftq", "lq-lora", "mixed", "masked", "conv1d"])
def test_16_bit_merge_equals_the_adapted_model_in_plain_transformers(
    runs, tmp_path, capsys, name: str
) -> None:
    folder, out = runs(name), tmp_path / "merged"
    assert main(["export", str(folder), "--out", str(out)]) == 0
    audit = json.loads((out / "audit.json").read_text())
    best = json.loads((folder / "result.json").read_text())["train/best_step"]
    (seen,) = [
        e["metrics"]["val/loss"]
        for e in read_events(folder / "events.jsonl")
        if e["event"] == "validation" and e["step"] == best
    ]
    assert audit["before"]["loss"] == pytest.approx(
        seen, abs=0.01
    )  # the run's own validation, with fused products
    assert abs(audit["added_loss"]) < 0.01
    assert all(
        row["after"] < 0.004 and row["before"] > row["after"]
        for row in audit["matrices"].values()
        if row["rank"]
    )
    task = json.loads((folder / "spec.json").read_text())["task"]
    stock = AUTO[task].from_pretrained(out, dtype=torch.bfloat16)
    assert torch.allclose(logits(stock), logits(merge_into_16bit(rebuild(find_run(folder)))[0]), atol=0.02)


def test_16_bit_merge_equals_base_with_adapter_in_plain_peft(runs, tmp_path) -> None:
    folder, out = runs("lora"), tmp_path / "merged"
    assert main(["export", str(folder), "--out", str(out)]) == 0
    base = AutoModelForCausalLM.from_pretrained(locate("tiny-llama"), dtype=torch.float32)
    untrained = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, str(folder / "adapter")))
    merged = logits(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32))
    assert (merged - adapted).norm() < 0.01 * adapted.norm() < 0.1 * (adapted - untrained).norm()


@pytest.mark.parametrize("name", ["loftq", "mixed", "conv1d", "int2"])
def test_quantized_merge_keeps_formats_and_reloads_from_its_file(runs, tmp_path, capsys, name: str) -> None:
    folder, out = runs(name), tmp_path / "merged"
    assert main(["export", str(folder), "--out", str(out), "--to", "quantized", "--force"]) == 0
    formats, plan = (
        json.loads((out / "formats.json").read_text()),
        json.loads((folder / "plan.json").read_text()),
    )
    low = {
        name: fmt for name, fmt in formats.items() if fmt != "bf16"
    }  # where fp32 is computed, 16 bits are a format that is decoded too
    assert low == {
        name: done["format"]
        for name, done in plan["applied"].items()
        if done["format"] != "bf16" and name != "lm_head"
    }
    spec = json.loads((folder / "spec.json").read_text())
    dtype = DTYPES[choose_dtype("cpu")]
    skeleton = AUTO[spec["task"]].from_config(AutoConfig.from_pretrained(out), dtype=dtype)
    again = logits(load_quantized(skeleton, out, dtype))
    assert torch.allclose(
        again, logits(requantize(rebuild(find_run(folder)), DEFAULT_QUANTIZER).model), atol=0.02
    )
    with pytest.raises(OSError):  # plain transformers must not load it as an unquantized model
        AUTO[spec["task"]].from_pretrained(out)


def test_adapter_and_merged_model_load_in_plain_libraries_with_the_labels_of_the_data(
    runs, tmp_path, monkeypatch
) -> None:
    folder, out = runs("mixed"), tmp_path / "merged"
    assert main(["export", str(folder), "--out", str(out)]) == 0
    monkeypatch.chdir(tmp_path)
    config = json.loads((folder / "adapter/adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"
    assert Path(config["base_model_name_or_path"]).is_absolute()
    adapted = AutoPeftModelForSequenceClassification.from_pretrained(str(folder / "adapter"), num_labels=2)
    assert adapted.base_model.model.classifier.modules_to_save.default.weight.shape[0] == 2
    merged = AutoModelForSequenceClassification.from_pretrained(out)
    assert set(merged.config.id2label.values()) == {"negative", "positive"}
    assert merged.config.label2id == {label: number for number, label in merged.config.id2label.items()}


def test_newly_initialized_modules_are_in_plan_file_and_output(runs) -> None:
    folder = runs("mixed")
    assert json.loads((folder / "plan.json").read_text())["new_modules"] == ["classifier"]
    notices = [
        event["message"] for event in read_events(folder / "events.jsonl") if event["event"] == "notice"
    ]
    assert any("newly initialised, trained whole: classifier" in message for message in notices)
    assert json.loads((runs("lora") / "plan.json").read_text())["new_modules"] == []


def test_export_with_too_large_a_loss_is_rejected(runs, tmp_path, capsys) -> None:
    out = tmp_path / "merged"
    command = ["export", str(runs("int2")), "--out", str(out), "--to", "quantized", "--quantizer", "rtn"]
    assert main([*command, "--max-loss", "0"]) == 2
    output = capsys.readouterr()
    assert (
        "nats to the validation loss, more than --max-loss 0: nothing was written" in output.err
        and "Audit" in output.out
    )
    assert list(tmp_path.iterdir()) == []
    assert main([*command, "--max-loss", "0", "--force"]) == 0
    assert json.loads((out / "audit.json").read_text())["added_loss"] > 0


def test_export_of_an_adapter_without_its_run_needs_model_and_task(runs, tmp_path, capsys) -> None:
    import shutil

    alone, out = tmp_path / "alone", tmp_path / "merged"
    shutil.copytree(runs("lora") / "adapter", alone)
    assert main(["export", str(alone), "--out", str(out)]) == 2
    assert "give --model (its 16-bit base) and --task" in capsys.readouterr().err
    assert (
        main(["export", str(alone), "--out", str(out), "--model", "tiny-llama", "--task", "toy_articles"])
        == 0
    )
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["{run}", "--out", "{run}"], "exists already"),
        (["{run}", "--out", "{new}", "--max-loss", "-1"], "0 or more, got -1.0"),
        (["{run}", "--out", "{new}", "--to", "quantized"], "no matrix of this run is quantized"),
        (["{run}", "--out", "{new}", "--task", "toy_articles"], "which defines its task and model"),
        (
            ["51094bc69d19", "--out", "{new}"],
            "there is no folder 51094bc69d19: expected a spec id of the store",
        ),
        (["{empty}", "--out", "{new}"], "contains no adapter"),
        (["{run}", "--out", "{new}", "--lora"], "cannot keep the adapter apart from its base; omit --lora"),
    ],
)
def test_invalid_export_arguments_exit_with_2(
    runs, tmp_path, capsys, command: list[str], message: str
) -> None:
    places = {"run": runs("lora"), "new": tmp_path / "new", "empty": tmp_path / "empty"}
    places["empty"].mkdir()
    assert main(["export", *(word.format(**places) for word in command)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
