"""Profiles for models and data of the hub, on local folders with tiny models that stand in for them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import torch
from bitrank.models.locate import locate
from bitrank.run.record import Record
from bitrank.run.train_run import execute
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.spec.rules import FixedRank
from bitrank.spec.run_spec import RunSpec, write_spec
from bitrank_quant import block_matrices
from bitrank_trainer import ALONE
from transformers import GPT2Config, GPT2LMHeadModel


def trained(spec: RunSpec, folder: Path) -> dict[str, Any]:
    """Figures of a whole run of ``spec`` in ``folder``."""
    folder.mkdir()
    write_spec(spec, folder / "spec.json")
    execute(spec, folder, Record(folder, ALONE), ALONE)
    figures: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return figures


def test_dialogue_adapts_every_matrix_of_the_blocks_and_learns_instructions(tmp_path: Path) -> None:
    words = ["good", "bad", "fine", "dull"]
    rows = {
        "instruction": [f"the film {n} is" for n in range(60)],
        "input": ["the cast" if n % 2 else "" for n in range(60)],
        "output": [f"{words[n % 4]} and {words[n % 4]}" for n in range(60)],
    }
    data = datasets.DatasetDict(train=datasets.Dataset.from_dict(rows))
    data.save_to_disk(str(tmp_path / "alpaca"))
    shutil.copytree(locate("tiny-gpt2"), tmp_path / "DialoGPT")
    local = {"data": str(tmp_path / "alpaca"), "model": str(tmp_path / "DialoGPT")}
    small = {"learning_rate": 5e-3, "max_length": 48, "threads": 1, "device": "cpu"}
    figures = trained(make_spec(PROFILES["dialogue"], "B-FP", "alpaca", {**local, **small}), tmp_path / "run")
    assert figures["eval/completion_ppl"] < figures["zero/completion_ppl"]
    ranks = json.loads((tmp_path / "run" / "ranks.json").read_text(encoding="utf-8"))["final"]
    adapted = {name.partition(".h.")[2].split(".", 1)[1] for name in ranks}
    assert adapted == {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"} and len(ranks) == 12
    texts = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert {"prediction_text", "reference_text"} <= set(texts) and len(texts) == 6


def test_rank_16_trains_six_million_parameters_of_dialogpt_medium() -> None:
    """The baseline of the selective-LoRA study: 6.29 million in ``c_attn``, ``c_proj`` and ``c_fc``."""
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16))
    blocks = block_matrices(model)
    ranks = FixedRank(16).assign_ranks(blocks)
    assert len(blocks) == 24 * 4
    assert sum(ranks[matrix.name] * sum(matrix.shape) for matrix in blocks) == 6_291_456


def write_split(folder: Path, split: str, columns: dict[str, list[Any]]) -> None:
    """Write a split as the Parquet file that its repository of the hub has."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", index=False)


def run_of_paper(task: str, data: Path, model: str, folder: Path) -> tuple[dict[str, Any], RunSpec]:
    """Two steps of the profile ``paper`` on ``task``, with a tiny model of its architecture."""
    shutil.copytree(locate(model), folder / "model")
    local = {"data": str(data), "model": str(folder / "model"), "device": "cpu"}
    small = {"steps": 2, "max_length": 32, "threads": 1}
    spec = make_spec(PROFILES["paper"], "B-Q4", task, {**local, **small})
    return trained(spec, folder / "run"), spec


def test_paper_trains_bert_on_the_files_of_sst2(tmp_path: Path) -> None:
    words = ["good", "bad"]
    for split, count, first in (("train", 60, 0), ("validation", 12, 60), ("test", 4, 72)):
        numbers = range(first, first + count)
        sentences = [f"the cast {number} is {words[number % 2]} " for number in numbers]
        labels = [-1 if split == "test" else 1 - number % 2 for number in numbers]  # the hub hides them
        columns = {"idx": list(range(count)), "sentence": sentences, "label": labels}
        write_split(tmp_path / "sst2", split, columns)
    figures, spec = run_of_paper("sst2", tmp_path / "sst2", "tiny-bert", tmp_path)
    assert {name: getattr(spec, name) for name in ("kind", "profile", "batch_size")} == {
        "kind": "classification", "profile": "paper", "batch_size": 8,
    }  # fmt: skip
    rows = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert sorted(rows["id"]) == sorted(f"sst2-validation-{number}" for number in range(12))
    assert figures["eval/acc"] == (rows["label"] == rows["prediction"]).mean()
    assert figures["train/tokens"] > 0 and figures["lora/params"] > 0


def test_paper_trains_gpt2_on_the_files_of_wikitext2(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("validation", 3), ("test", 3)):
        lines = []
        for number in range(count):
            lines += ["", f" = Film {number} = \n", "", " the film is good and the cast is bad . \n" * 4]
        write_split(tmp_path / "wikitext", split, {"text": lines})
    figures, spec = run_of_paper("wikitext2", tmp_path / "wikitext", "tiny-gpt2", tmp_path)
    assert {name: getattr(spec, name) for name in ("kind", "profile", "batch_size")} == {
        "kind": "language-modelling", "profile": "paper", "batch_size": 4,
    }  # fmt: skip
    rows = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert set(rows["id"]) == {f"wikitext2-test-{number}" for number in range(3)}
    loss = rows["loss"].sum() / rows["tokens"].sum()
    assert figures["eval/ppl"] == pytest.approx(math.exp(loss))
    assert figures["eval/token_acc"] == rows["right"].sum() / rows["tokens"].sum()


def test_base_trains_a_local_model_on_a_file_of_its_kind(tmp_path: Path) -> None:
    texts = [f"the film {n} is {'good' if n % 2 else 'bad'}" for n in range(80)]
    pd.DataFrame({"text": texts, "label": [n % 2 for n in range(80)]}).to_csv(tmp_path / "x.csv", index=False)
    shutil.copytree(locate("tiny-bert"), tmp_path / "mpnet")
    given = {"model": str(tmp_path / "mpnet"), "steps": 12, "learning_rate": 5e-3, "max_length": 16}
    spec = make_spec(PROFILES["base"], "B-Q4", str(tmp_path / "x.csv"), {**given, "device": "cpu"})
    assert trained(spec, tmp_path / "run")["eval/acc"] >= 0.9
