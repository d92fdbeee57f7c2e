"""Complete runs on tiny models: their records and artifacts, failures, and messages."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from bitrank.process.tcmalloc import find_tcmalloc
from bitrank.spec.configs import DEFAULT_CONFIGS
from peft import PeftModel
from study_tools import SMOKE, bitrank, store_runs
from transformers import AutoModelForCausalLM

RUNS = 2 * len(DEFAULT_CONFIGS)  # each config on both tasks


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete smoke study."""
    cwd = tmp_path_factory.mktemp("study")
    done = bitrank(*SMOKE, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{RUNS} of {RUNS} runs are complete" in done.stdout
    assert "do not interpret these numbers" in done.stdout
    return cwd


def test_every_run_is_recorded_completely(study: Path) -> None:
    runs = store_runs(study)
    assert len(runs) == RUNS and {run["status"] for run in runs} == {"FINISHED"}
    needed = {
        *("eval/loss", "zero/loss"),
        *("model/mib", "model/bits"),
        *("lora/params", "lora/percent", "lora/rank"),
        *("mem/peak_mib", "mem/import_mib"),
        *("speed/train_tok_s", "speed/eval_tok_s", "speed/infer_tok_s"),
        *("time/setup_s", "time/train_s", "time/epoch_s", "time/total_s"),
    }
    for run in runs:
        finals = {key for key, step, _ in run["points"] if step == 0}
        quality = "eval/acc" if "sentences" in run["name"] else "eval/ppl"
        assert needed | {quality, quality.replace("eval", "zero")} <= finals, run["name"]
        curves = {key for key, step, _ in run["points"] if step > 0}
        assert {"train/loss", "train/grad_norm", "train/lr", "train/rank", "val/loss"} <= curves
        assert ("train/reg" in curves) == (run["tags"]["config"] in {"B-Ada", "Joint-1", "Joint-2"})
        assert {
            "cell",
            "family",
            "spec_id",
            "hardware",
            "version.torch",
            "version.bitrank-quant",
            "stored_as",
        } <= set(run["tags"])
        assert run["tags"]["allocator"] == ("tcmalloc" if find_tcmalloc() else "system")


def test_adaptive_arms_end_at_their_budget(study: Path) -> None:
    for run in store_runs(study):
        ranks = {
            key: value for key, step, value in run["points"] if step == 0 and key.startswith("lora/rank")
        }
        expected = {"B-FP": 8, "B-Q4": 8, "B-Ada": 4, "Joint-1": 4, "Joint-2": 4}
        if run["tags"]["config"] in expected:
            assert ranks["lora/rank_mean"] == expected[run["tags"]["config"]]


def test_stored_bytes_follow_the_precision(study: Path) -> None:
    bits = {
        run["name"]: value
        for run in store_runs(study)
        for key, _, value in run["points"]
        if key == "model/bits"
    }
    for task in ("toy_sentences", "toy_articles"):
        assert (
            bits[f"B-FP {task} s0"]
            == bits[f"B-Ada {task} s0"]
            > bits[f"Joint-3 {task} s0"]
            > bits[f"B-Q4 {task} s0"]
        )


def test_artifacts_are_in_the_store(study: Path) -> None:
    run = next(run for run in store_runs(study) if run["name"] == "Joint-3 toy_articles s0")
    folder = study / "runs" / "artifacts" / "bitrank-smoke" / run["id"] / "artifacts"
    names = {path.name for path in folder.iterdir()}
    assert {
        "spec.json",
        "plan.json",
        "ranks.json",
        "predictions.parquet",
        "adapter",
        "checkpoint",
        "log.txt",
    } <= names
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["applied"]["model.layers.0.mlp.up_proj"] == {"format": "nf4-dq", "backend": "bitsandbytes"}
    assert plan["applied"]["model.layers.0.self_attn.q_proj"] == {"format": "int8", "backend": "torch"}
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    assert {"id", "loss", "tokens"} <= set(rows[0])
    total = sum(row["loss"] for row in rows) / sum(row["tokens"] for row in rows)
    assert total == pytest.approx(
        next(value for key, step, value in run["points"] if key == "eval/loss"), rel=1e-9
    )
    base = AutoModelForCausalLM.from_pretrained(next(Path(study_cache()).glob("models/tiny-llama-*")))
    ranks = {
        m.lora_A["default"].weight.shape[0]
        for m in PeftModel.from_pretrained(base, folder / "adapter").modules()
        if hasattr(m, "lora_A")
    }
    assert ranks == {6, 10}


def study_cache() -> str:
    import os

    return os.environ["BITRANK_CACHE"]


def test_all_arms_are_evaluated_on_the_same_examples(study: Path) -> None:
    for task in ("toy_sentences", "toy_articles"):
        ids = set()
        for run in store_runs(study):
            if run["tags"]["task"] == task:
                path = study / "runs/artifacts/bitrank-smoke" / run["id"] / "artifacts/predictions.parquet"
                ids.add(tuple(pq.read_table(path)["id"].to_pylist()))
        assert len(ids) == 1


def test_second_invocation_runs_nothing(study: Path) -> None:
    before = store_runs(study)
    again = bitrank(*SMOKE, cwd=study, timeout=30)
    assert again.returncode == 0
    assert f"{RUNS} of {RUNS} runs are complete" in again.stdout and "running" not in again.stdout
    assert store_runs(study) == before


def test_result_files_are_written(study: Path) -> None:
    assert len(json.loads((study / "results/all_results.json").read_text())) == RUNS
    assert (study / "results/experiment_summary.csv").read_text().count("\n") == RUNS + 1
    assert {path.name for path in (study / "results").glob("results_*")} == {
        f"results_{config}_{task}.json"
        for config in DEFAULT_CONFIGS
        for task in ("toy_sentences", "toy_articles")
    }


def test_results_of_older_code_are_marked_stale(study: Path) -> None:
    import sqlite3

    with sqlite3.connect(study / "runs/mlflow.db") as db:
        run_id = store_runs(study)[0]["id"]
        code = db.execute("SELECT value FROM tags WHERE key = 'code' AND run_uuid = ?", [run_id]).fetchone()[
            0
        ]
        db.execute("UPDATE tags SET value = 'older' WHERE key = 'code' AND run_uuid = ?", [run_id])
        db.commit()
        listed = bitrank("list", "--profile", "smoke", "--json", cwd=study)
        assert [row["state"] for row in json.loads(listed.stdout)].count("stale") == 1
        table = bitrank(*SMOKE, cwd=study)
        assert "stale" in table.stdout and "made by older code" in table.stdout
        db.execute("UPDATE tags SET value = ? WHERE key = 'code' AND run_uuid = ?", [code, run_id])
        db.commit()


def test_failing_run_does_not_stop_the_others(tmp_path: Path) -> None:
    """Two steps are too few for AdaLoRA's schedule, but enough for LoRA."""
    done = bitrank(
        *SMOKE, "--tasks", "toy_articles", "--configs", "B-Ada,B-FP", "--set", "steps=2", cwd=tmp_path
    )
    assert {run["name"]: run["status"] for run in store_runs(tmp_path)} == {
        "B-Ada toy_articles s0": "FAILED",
        "B-FP toy_articles s0": "FINISHED",
    }
    assert done.returncode == 2
    assert "1 of 2 runs are complete" in done.stdout and "too few for AdaLoRA" in done.stdout
    failed = next(run for run in store_runs(tmp_path) if run["status"] == "FAILED")
    folder = tmp_path / "runs/artifacts/bitrank-smoke" / failed["id"] / "artifacts"
    assert "Traceback" in json.loads((folder / "failure.json").read_text())["trace"]


def test_divergence_is_recorded_as_a_finding_and_not_retried(tmp_path: Path) -> None:
    arguments = (*SMOKE, "--tasks", "toy_articles", "--configs", "B-FP", "--set", "adapter_scale=1e38")
    done = bitrank(*arguments, cwd=tmp_path)
    (run,) = store_runs(tmp_path)
    assert done.returncode == 1 and run["status"] == "FAILED" and "diverged at step" in run["tags"]["finding"]
    again = bitrank(*arguments, cwd=tmp_path)
    assert again.returncode == 1 and "diverged" in again.stdout and "0 of 1 runs are complete" in again.stdout
    assert store_runs(tmp_path) == [run]


def run_one(cwd: Path, *arguments: str) -> tuple[int, str]:
    done = bitrank("run", "--profile", "smoke", *arguments, cwd=cwd)
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config", "B-Q4", "--task", "toy_sentences", "--quant-backend", "cuda-4bit"],
            "'cuda-4bit' cannot run here",
        ),
        (
            ["--config", "B-Q4", "--task", "toy_sentences", "--quant-backend", "gpu"],
            "unknown quant_backend 'gpu'",
        ),
        (
            ["--config", "B-FP", "--task", "toy_articles", "--model", "tiny-bert"],
            "cannot do language modelling",
        ),
        (["--config", "B-FP", "--task", "toy_sentences", "--model", "./nowhere"], "no such model folder"),
        (["--config", "B-FP", "--task", "toy_sentences", "--model", "."], "is no model"),
        (["--config", "B-Ada", "--task", "toy_sentences", "--max-steps", "2"], "too few for AdaLoRA"),
        (["--plan", "wrong.json", "--task", "toy_sentences"], "this model lacks"),
        (["--plan", "big.json", "--task", "toy_sentences"], "rank 65 does not fit"),
    ],
)
def test_bad_input_found_by_a_run_is_reported(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "wrong.json").write_text(
        '{"precision": {}, "ranks": {"bert.encoder.layer.0.attention.self.qeury": 4}}'
    )
    (tmp_path / "big.json").write_text(
        '{"precision": {}, "ranks": {"bert.encoder.layer.0.attention.self.query": 65}}'
    )
    code, output = run_one(tmp_path, *arguments)
    assert code == 2, output
    assert message in output
    # Names and plans are checked before a run is opened; errors found later are recorded as its failure.
    runs = store_runs(tmp_path) if (tmp_path / "runs/mlflow.db").exists() else []
    checked_before = {"--plan", "gpu", "cuda-4bit"} & set(arguments)
    assert len(runs) == (0 if checked_before else 1)
    for run in runs:
        assert run["status"] == "FAILED" and message in run["tags"]["failure"]


def test_sst2_is_read_from_a_local_folder(tmp_path: Path) -> None:
    import datasets

    rows = {
        "sentence": [f"the film {n} is {'good' if n % 2 else 'bad'}" for n in range(80)],
        "label": [n % 2 for n in range(80)],
    }
    part = datasets.Dataset.from_dict(rows)
    datasets.DatasetDict(train=part, validation=part.select(range(20))).save_to_disk(tmp_path / "sst2")
    code, output = run_one(tmp_path, "--config", "Joint-1", "--task", "sst2", "--data", "sst2")
    assert code == 0, output
    (run,) = store_runs(tmp_path)
    assert run["tags"]["task"] == "sst2" and run["status"] == "FINISHED"


def test_plan_file_text_file_and_local_gpt2_train_together(tmp_path: Path) -> None:
    """GPT-2 (`Conv1D`) from a local folder, a user's text file, and a plan of mixed formats and ranks."""
    from bitrank.spec.tiny_models import build_tiny

    (tmp_path / "gpt2").mkdir()
    build_tiny("tiny-gpt2", tmp_path / "gpt2")
    lines = [
        json.dumps({"text": f"film {n} " + "the film is good . the cast is bad . the score is fine " * 5})
        for n in range(30)
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    plan = {
        "precision": {
            "transformer.h.0.attn.c_attn": "int3-g64",
            "transformer.h.1.mlp.c_fc": "nf4",
            "transformer.wte": "int4-g64",
        },
        "ranks": {"transformer.h.0.attn.c_attn": 3, "transformer.h.2.mlp.c_proj": 5},
    }
    (tmp_path / "odd.json").write_text(json.dumps(plan))
    code, output = run_one(tmp_path, "--plan", "odd.json", "--task", "mine.jsonl", "--model", "./gpt2")
    assert code == 0, output
    (run,) = store_runs(tmp_path)
    assert run["name"] == "odd mine s0"
    assert {"int3-g64@torch", "nf4@bitsandbytes", "int4-g64@torch"} <= set(
        run["tags"]["stored_as"].split(", ")
    )
    figures = {key: value for key, step, value in run["points"] if step == 0}
    assert figures["lora/rank"] == 8 and figures["eval/loss"] < figures["zero/loss"]
