"""Selection of the runs of a study, and the reasons given for the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from bitrank_analysis import AnalysisError, Study, load_study, open_store
from bitrank_analysis.metrics import METRICS


def study_of(folder: Path, experiment: str | None = None) -> Study:
    return load_study(open_store(str(folder)), experiment)


def test_row_of_a_run_has_its_measured_values(maker, tmp_path: Path) -> None:
    metrics = {
        "eval/acc": 0.75,
        "eval/loss": 0.4,
        "zero/acc": 0.5,
        "model/mib": 28.0,
        "model/bits": 4.5,
        "lora/params": 1000.0,
        "lora/percent": 2.0,
        "lora/mib": 0.5,
        "lora/rank": 144.0,
        "mem/peak_mib": 1900.0,
        "mem/import_mib": 400.0,
        "speed/train_tok_s": 50.0,
        "time/total_s": 70.0,
    }
    metrics["time/plan_s"] = 12.0
    run = maker.run("Joint-1", seed=3, metrics=metrics, tags={"family": "joint"})
    row = study_of(tmp_path).runs.iloc[0].to_dict()
    assert row == {
        "run_id": run,
        "run_name": "Joint-1 movies s3",
        "config": "Joint-1",
        "task": "movies",
        "seed": 3,
        "model": "tiny",
        "kind": "classification",
        "metric": "acc",
        "higher_is_better": True,
        "quality": 0.75,
        "zero": 0.5,
        "loss": 0.4,
        "model_mib": 28.0,
        "adapter_mib": 0.5,
        "adapter_params": 1000.0,
        "trainable_percent": 2.0,
        "rank": 144.0,
        "peak_mib": 1900.0,
        "import_mib": 400.0,
        "train_tok_s": 50.0,
        "seconds": 70.0,
        "bits": 4.5,
        "plan_s": 12.0,
        "family": "joint",
        "device": "",
        "hardware": "a machine",
        "code": "c1",
        "stale": False,
        "settings": "",
    }


def test_lower_perplexity_is_better(maker, tmp_path: Path) -> None:
    maker.run("B-FP", "wiki", metrics={"eval/ppl": 22.0, "eval/token_acc": 0.4})
    row = study_of(tmp_path).runs.iloc[0]
    assert (row["kind"], row["metric"], row["higher_is_better"], row["quality"]) == (
        "language-modelling",
        "ppl",
        False,
        22.0,
    )


def test_every_missing_cell_has_its_reason(maker, tmp_path: Path) -> None:
    maker.run("A", metrics={"eval/acc": 0.5})
    maker.run("A", seed=1, status="FAILED", tags={"failure": "out of memory"})
    maker.run("B", status="KILLED", tags={"failure": "killed by SIGKILL"})
    maker.run("B", seed=1, status="FAILED", tags={"finding": "loss is NaN at step 9"})
    maker.run("C", status="RUNNING")
    maker.run("D", metrics={"eval/acc": float("nan")})
    maker.run("D", seed=1, metrics={"eval/rouge": 0.3})
    study = study_of(tmp_path)
    known = ", ".join(f"eval/{key}" for key in METRICS)
    assert list(study.missing.itertuples(index=False, name=None)) == [
        ("A", "movies", 1, "FAILED", "failed: out of memory"),
        ("B", "movies", 0, "KILLED", "killed: killed by SIGKILL"),
        ("B", "movies", 1, "FAILED", "diverged: loss is NaN at step 9"),
        ("C", "movies", 0, "RUNNING", "running"),
        ("C", "movies", 1, "ABSENT", "absent: it was not run"),
        ("D", "movies", 0, "FINISHED", "finished, but its eval/acc is nan, not a number to compare"),
        (
            "D",
            "movies",
            1,
            "FINISHED",
            f"finished with a metric that is not known: expected one of {known}, got eval/rouge",
        ),
    ]
    assert list(study.runs["config"]) == ["A"]


def test_a_run_without_a_test_is_not_compared(maker, tmp_path: Path) -> None:
    maker.run("A", metrics={"eval/acc": 0.5})
    maker.run("B", metrics={"val/loss": 0.3})
    study = study_of(tmp_path)
    assert list(study.runs["config"]) == ["A"]
    (row,) = study.missing.itertuples(index=False, name=None)
    assert row == ("B", "movies", 0, "FINISHED", "finished without a test")


def test_newest_run_of_a_cell_is_selected_with_a_note(maker, tmp_path: Path) -> None:
    maker.run("A", metrics={"eval/acc": 0.5})
    newer = maker.run("A", metrics={"eval/acc": 0.6})
    maker.run("A", status="FAILED")
    study = study_of(tmp_path)
    assert list(study.runs["run_id"]) == [newer] and study.missing.empty
    assert study.notes == (
        "Runs left out for another of the same config, task and seed that is newer or has the usual "
        "settings: 1.",
    )


def test_newer_run_with_unusual_settings_is_not_selected(maker, tmp_path: Path) -> None:
    usual = [
        maker.run(config, metrics={"eval/acc": 0.8}, params={"steps": "320", "rank": config})
        for config in ("A", "B", "C")
    ]
    maker.run("B", metrics={"eval/acc": 0.5}, params={"steps": "20"})
    alone = maker.run("D", metrics={"eval/acc": 0.5}, params={"steps": "20"})
    study = study_of(tmp_path)
    assert list(study.runs["run_id"]) == [*usual, alone]
    assert list(study.runs["settings"]) == ["", "", "", "steps=20"]
    assert "Trained with other settings than most runs of their task: D movies s0 (steps=20)." in study.notes


@pytest.mark.parametrize(("key", "other"), [("dropout", 0.5), ("weight_decay", 10.0), ("dtype", "fp32")])
def test_newer_run_with_another_field_of_the_spec_is_not_selected(
    maker, tmp_path: Path, key: str, other: object
) -> None:
    spec = {"steps": 320, "dropout": 0.1, "weight_decay": 0.0, "dtype": "auto"}
    usual = [
        maker.run(config, metrics={"eval/acc": 0.8}, files={"spec.json": spec}) for config in ("A", "B", "C")
    ]
    maker.run("B", metrics={"eval/acc": 0.5}, files={"spec.json": {**spec, key: other}})
    study = study_of(tmp_path)
    assert list(study.runs["run_id"]) == usual and set(study.runs["settings"]) == {""}
    maker.run("D", metrics={"eval/acc": 0.5}, files={"spec.json": {**spec, key: other}})
    assert list(study_of(tmp_path).runs["settings"]) == ["", "", "", f"{key}={other}"]


def test_setting_of_an_arm_is_compared_with_other_runs_of_that_arm(maker, tmp_path: Path) -> None:
    """Arms may differ in rank or initialization; seeds of one arm may not."""
    for config, init in (("A", "default"), ("B", "loftq")):
        for seed in (0, 1):
            maker.run(
                config, seed=seed, metrics={"eval/acc": 0.8}, files={"spec.json": {"init": init, "rank": 8}}
            )
    assert set(study_of(tmp_path).runs["settings"]) == {""}
    odd = {"spec.json": {"init": "loftq", "rank": 64}}
    maker.run("A", seed=2, metrics={"eval/acc": 0.8}, files=odd)
    settings = study_of(tmp_path).runs.set_index(["config", "seed"])["settings"]
    assert settings["A", 2] == "rank=64, init=loftq" and (settings.drop(("A", 2)) == "").all()


def test_two_plan_files_of_one_name_are_distinguished(maker, tmp_path: Path) -> None:
    for seed, fmt in ((0, "nf4"), (1, "nf4"), (2, "int2-g64")):
        maker.run("plan", seed=seed, metrics={"eval/acc": 0.8}, files={"spec.json": {"arm": {"a": fmt}}})
    settings = list(study_of(tmp_path).runs["settings"])
    assert settings[:2] == ["", ""] and settings[2].startswith("arm=")


def test_runs_on_edited_data_replace_those_on_the_old_data(maker, tmp_path: Path) -> None:
    old, new = {"data_digest": "content:aa"}, {"data_digest": "content:bb"}
    maker.run("A", metrics={"eval/acc": 0.9}, params=old)
    maker.run("B", metrics={"eval/acc": 0.9}, params=old)
    newest = maker.run("A", metrics={"eval/acc": 0.5}, params=new)
    maker.run("C", status="FAILED", params={"data_digest": "content:cc"})
    without_digest = maker.run("D", metrics={"eval/acc": 0.7})
    other_task = maker.run("A", "wiki", metrics={"eval/acc": 0.7}, params=old)
    study = study_of(tmp_path)
    assert list(study.runs["run_id"]) == [newest, without_digest, other_task]
    assert ("B", "movies", 0, "FINISHED", "finished on other data than the newest run of its task") in list(
        study.missing.itertuples(index=False, name=None)
    )
    assert "Runs left out because their task has a newer run on other data: 2." in study.notes


def test_model_folder_is_identified_by_its_content(maker, tmp_path: Path) -> None:
    for config, path, digit in (("A", "/a/m", "1"), ("B", "/moved/m", "1"), ("C", "/a/m", "2")):
        params = {"model": path, "model_digest": f"content:{64 * digit}"}
        maker.run(config, metrics={"eval/acc": 0.5}, params=params)
    assert list(study_of(tmp_path).runs["settings"]) == ["", "", "model=content:222222222222"]


def test_runs_of_older_code_are_stale(maker, tmp_path: Path) -> None:
    """``code`` is compared within each arm, ``shared_code`` across all arms."""
    maker.run("A", metrics={"eval/acc": 0.5}, tags={"code": "a1", "shared_code": "old"})
    maker.run("B", metrics={"eval/acc": 0.5}, tags={"code": "b1", "shared_code": "new"})
    maker.run("C", seed=0, metrics={"eval/acc": 0.5}, tags={"code": "c1", "shared_code": "new"})
    maker.run("C", seed=1, metrics={"eval/acc": 0.5}, tags={"code": "c2", "shared_code": "new"})
    study = study_of(tmp_path)
    assert dict(zip(study.runs["run_name"], study.runs["stale"], strict=True)) == {
        "A movies s0": True,
        "B movies s0": False,
        "C movies s0": True,
        "C movies s1": False,
    }
    assert study.notes == ("Made by other code than the newest runs: A movies s0, C movies s0.",)


def test_runs_of_another_tool_are_left_out_and_counted(maker, tmp_path: Path) -> None:
    maker.run("A", metrics={"eval/acc": 0.5})
    maker.run("", metrics={"eval/acc": 0.9})
    maker.run("A", metrics={"eval/acc": 0.9}, tags={"seed": "first"})
    study = study_of(tmp_path)
    assert list(study.runs["quality"]) == [0.5]
    assert study.notes == ("Runs left out because they lack the tags config, task and seed: 2.",)


def test_store_of_another_tool_raises(maker, tmp_path: Path) -> None:
    maker.run("", metrics={"accuracy": 0.9})
    with pytest.raises(
        AnalysisError, match=r"expected runs with the tags config, task and seed.*has 1 runs and none"
    ):
        study_of(tmp_path)


def test_empty_store_raises(maker, tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="has 0 runs and none"):
        study_of(tmp_path)


def test_experiment_must_be_known_and_unambiguous(maker, tmp_path: Path) -> None:
    maker.run("A", metrics={"eval/acc": 0.5}, experiment="bitrank-smoke")
    maker.run("A", metrics={"eval/acc": 0.7}, experiment="bitrank-laptop")
    with pytest.raises(
        AnalysisError, match="several experiments; choose one of bitrank-laptop, bitrank-smoke"
    ):
        study_of(tmp_path)
    with pytest.raises(AnalysisError, match=r"no experiment 'paper'.*bitrank-laptop, bitrank-smoke"):
        study_of(tmp_path, "paper")
    assert list(study_of(tmp_path, "bitrank-laptop").runs["quality"]) == [0.7]


def test_study_without_finished_runs_has_only_missing_cells(maker, tmp_path: Path) -> None:
    maker.run("A", status="FAILED")
    study = study_of(tmp_path)
    assert study.runs.empty and "quality" in study.runs and list(study.missing["reason"]) == ["failed"]


def test_predictions_of_a_run(maker, tmp_path: Path) -> None:
    run = maker.classifier("A", [True, False])
    frame = study_of(tmp_path).predictions(run)
    assert list(frame["id"]) == ["e0", "e1"] and list(frame["label"] == frame["prediction"]) == [True, False]
