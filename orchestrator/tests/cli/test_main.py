"""The command line: help and exit codes. Bad input gives exit code 2, one clear line and no traceback."""

from __future__ import annotations

import json
import os
import re
import socket
import sqlite3
import subprocess
import sys

import pytest
from bitrank.cli.main import main
from bitrank.planning.study_arms import SYSTEM_ARMS
from bitrank.spec.configs import CONFIGS, DEFAULT_CONFIGS, SYSTEM


def fails(capsys, *arguments: str) -> str:
    """Run, expect exit code 2, and return the printed text."""
    try:
        code = main(list(arguments))
    except SystemExit as stop:  # argparse
        code = stop.code
    output = capsys.readouterr()
    assert code == 2, output
    assert "Traceback" not in output.err + output.out
    return output.err + output.out


@pytest.mark.parametrize("command", ["matrix", "run", "list", "report", "sql", "export", "doctor", "ui"])
def test_every_command_has_help_with_examples(capsys, command: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert "examples:" in output and f"bitrank {command}" in output


@pytest.mark.parametrize("command", ["matrix", "run", "plan", "study", "list", "export"])
def test_help_says_what_an_omitted_option_means_without_a_value_of_python(capsys, command: str) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert not re.search(r"\b(None|True|False)\b", capsys.readouterr().out)


def test_help_of_a_run_describes_the_default_configs_and_names_the_list_of_all(
    capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "2000")  # no line break inside of a name
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = capsys.readouterr().out.partition("--config CONFIG ")[2].rpartition("  --task TASK ")[0].strip()
    described = "; ".join(f"{name}: {CONFIGS[name].about}" for name in DEFAULT_CONFIGS)
    assert text.endswith(f"{described}; all: `bitrank list --arms`")
    assert all(f"{name}: " not in text for name in set(CONFIGS) - set(DEFAULT_CONFIGS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["matrix", "--profile", "smoke", "--configs", "B-FB"], "unknown config 'B-FB'; nearest: B-FP"),
        (["matrix", "--profile", "smok"], "unknown profile 'smok'; nearest: smoke"),
        (["matrix", "--tasks", "sst3"], "unknown task 'sst3'; nearest: sst2"),
        (["matrix", "--seeds", "a"], "expected whole numbers"),
        (["matrix", "--jobs", "0"], "argument --jobs: must be 1 or more, got 0"),
        (["matrix", "--executor", "slurm"], "invalid choice: 'slurm'"),
        (["run", "--task", "sst2"], "give --config"),
        (
            ["run", "--config", "B-FP", "--task", "toy_sentences", "--batch-size", "0"],
            "batch_size must be 1 or more, got 0",
        ),
        (
            ["run", "--config", "B-FP", "--task", "toy_sentences", "--max-steps", "-4"],
            "steps must be 1 or more, got -4",
        ),
        (
            ["run", "--config", "B-FP", "--task", "toy_sentences", "--seed", "x"],
            "seed must be a whole number, got 'x'",
        ),
        (["run", "--config", "B-FP", "--task", "toy_sentences", "--seed", "-1"], "seed"),
        (
            ["run", "--config", "B-FP", "--task", "toy_sentences", "--set", "lerning_rate=1"],
            "nearest: learning_rate",
        ),
        (["run", "--config", "B-FP", "--task", "none.csv"], "cannot read none.csv: there is no such file"),
        (["run", "--plan", "none.json", "--task", "toy_sentences"], "cannot read the plan"),
        (["list", "--store", "ftp://x"], "cannot use the store"),
    ],
)
def test_wrong_arguments_are_rejected(capsys, arguments: list[str], message: str) -> None:
    assert message in fails(capsys, *arguments)


def test_a_file_that_is_not_a_store_is_rejected(capsys, tmp_path) -> None:
    (tmp_path / "mlflow.db").write_text("this is not a database, it is a letter\n" * 100)
    assert "is not an MLflow store" in fails(capsys, "matrix", "--profile", "smoke", "--store", str(tmp_path))
    (tmp_path / "mlflow.db").unlink()
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("CREATE TABLE songs (name TEXT)")
    assert "not an MLflow store (tables: songs)" in fails(capsys, "list", "--store", str(tmp_path))
    (tmp_path / "file").write_text("")
    assert "cannot write the store" in fails(
        capsys, "matrix", "--profile", "smoke", "--store", str(tmp_path / "file")
    )
    assert "does not answer" in fails(capsys, "list", "--store", "http://127.0.0.1:9")


def test_a_port_in_use_is_rejected(capsys, tmp_path) -> None:
    (tmp_path / "runs").mkdir()
    main(["list", "--profile", "smoke"])
    capsys.readouterr()
    assert "there is no store" in fails(capsys, "ui")
    from bitrank.tracking.store import open_store

    open_store("runs")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} is in use; give another with --port" in fails(capsys, "ui", "--port", str(port))


@pytest.mark.parametrize("port", ["0", "-1", "65536", "1000000000"])
def test_port_outside_1_to_65535_is_rejected(capsys: pytest.CaptureFixture[str], port: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["ui", f"--port={port}"])
    assert stop.value.code == 2
    assert re.search(r"must be (1 or more|at most 65535)", capsys.readouterr().err)


def test_list_does_not_create_a_store(capsys, tmp_path) -> None:
    assert main(["list", "--profile", "smoke", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 2 * len(DEFAULT_CONFIGS) and {row["state"] for row in rows} == {"new"}
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("set_by_the_user", [None, "7"])
def test_memory_that_a_computing_command_keeps_is_bounded(
    capsys, monkeypatch, tmp_path, set_by_the_user: str | None
) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", set_by_the_user or "")
    if set_by_the_user is None:
        monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    assert main(["plan", "--task", "toy_sentences", "--budget", "a lot"]) == 2
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == (set_by_the_user or "128")


def test_the_front_of_the_command_line_loads_no_torch() -> None:
    code = (
        "import sys; from bitrank.cli.main import main; main(['list', '--profile', 'smoke', '--json']); "
        "print(sorted({'torch', 'transformers', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_sql_answers_from_the_store_and_loads_no_torch(capsys, tmp_path) -> None:
    from bitrank.tracking.store import open_store

    client = open_store(str(tmp_path / "runs"))
    run = client.create_run(
        client.create_experiment("bitrank-smoke", artifact_location=str(tmp_path)), run_name="B-FP toy s0"
    )
    client.log_metric(run.info.run_id, "eval/acc", 0.75)
    arguments = ["sql", 'SELECT run_name, "m.eval/acc" AS acc FROM wide', "--store", str(tmp_path / "runs")]
    assert main([*arguments, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"run_name": "B-FP toy s0", "acc": 0.75}]
    assert main([*arguments, "--format", "csv"]) == 0
    assert capsys.readouterr().out == "run_name,acc\nB-FP toy s0,0.75\n"
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == [
        "run_name      acc",
        "───────────  ────",
        "B-FP toy s0  0.75",
    ]
    code = (
        f"import sys; from bitrank.cli.main import main; main({arguments!r}); "
        "print(sorted({'torch', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_sql_errors_are_clear(capsys, tmp_path) -> None:
    from bitrank.tracking.store import open_store

    assert "there is no store at" in fails(capsys, "sql", "SELECT 1")
    assert "sqlite:/// or a postgresql:// URI, got http" in fails(
        capsys, "sql", "SELECT 1", "--store", "http://x:5000"
    )
    open_store(str(tmp_path / "runs"))
    output = fails(capsys, "sql", "SELEC 1", "--store", str(tmp_path / "runs"))
    assert 'syntax error at or near "SELEC"' in output and "views: " in output
    assert "invalid choice: 'xml'" in fails(capsys, "sql", "SELECT 1", "--format", "xml")


def _finished(client, experiment: str, config: str, right: list[bool], folder) -> None:
    """A finished run of ``config`` with the tags, metrics and files for a report."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    n = len(right)
    labels, output = [i % 2 for i in range(n)], [i % 2 if won else 1 - i % 2 for i, won in enumerate(right)]
    rows = {
        "id": [f"e{i}" for i in range(n)],
        "label": labels,
        "prediction": output,
        "loss": [0.4] * n,
        "tokens": [9] * n,
    }
    pq.write_table(pa.table(rows), folder / "predictions.parquet")
    name = "encoder.layer.0.attention.self.query"
    (folder / "plan.json").write_text(
        json.dumps({"precision": {name: "nf4"}, "ranks": {name: 8}, "matrices": [], "applied": {}})
    )
    (folder / "ranks.json").write_text(json.dumps({"final": {name: 8}, "over_time": {"1": {name: 8}}}))
    run = client.create_run(
        experiment, run_name=f"{config} toy s0", tags={"config": config, "task": "toy", "seed": "0"}
    ).info.run_id
    figures = {
        "eval/acc": sum(right) / n,
        "eval/loss": 0.4,
        "zero/acc": 0.5,
        "model/mib": 10.0,
        "model/bits": 6.0,
        "mem/peak_mib": 900.0,
    }
    figures |= {
        "mem/import_mib": 400.0,
        "lora/params": 1e4,
        "lora/percent": 1.0,
        "lora/rank": 8.0,
        "train/loss": 0.5,
        "time/total_s": 9.0,
    }
    for key, value in figures.items():
        client.log_metric(run, key, value)
    client.log_artifacts(run, str(folder))
    client.set_terminated(run, "FINISHED")


def test_paper_writes_the_inputs_of_the_arms_that_count(capsys, tmp_path) -> None:
    from bitrank.tracking.store import open_store

    store = str(tmp_path / "runs")
    client = open_store(store)
    experiment = client.create_experiment("bitrank-smoke", artifact_location=str(tmp_path / "artifacts"))
    _finished(client, experiment, "B-FP", [True] * 90 + [False] * 10, tmp_path / "a")
    _finished(client, experiment, "B-Q4", [True] * 60 + [False] * 40, tmp_path / "b")
    arguments = ["--store", store, "--out", str(tmp_path / "generated")]
    assert main(["paper", "--profile", "smoke", *arguments]) == 0
    assert capsys.readouterr().out == f"paper inputs: {tmp_path / 'generated'}\n"
    claims = (tmp_path / "generated/claims.tex").read_text()
    assert "B-Q4" in claims and "no arm is called better, worse or as good" in claims
    assert main(["paper", *arguments, "--configs", "B-FP"]) == 0
    assert not (tmp_path / "generated/claims.tex").exists()
    assert "B-Q4" not in (tmp_path / "generated/macros.tex").read_text()
    assert "expected finished runs of Joint-9" in fails(capsys, "paper", *arguments, "--configs", "Joint-9")
    assert "expected one of bitrank-smoke" in fails(capsys, "paper", *arguments, "--profile", "laptop")


def test_report_prints_the_verdict_and_the_path_of_the_page(capsys, tmp_path) -> None:
    from bitrank.tracking.store import open_store

    store = str(tmp_path / "runs")
    client = open_store(store)
    experiment = client.create_experiment("bitrank-smoke", artifact_location=str(tmp_path / "artifacts"))
    _finished(client, experiment, "B-FP", [True] * 90 + [False] * 10, tmp_path / "a")
    _finished(client, experiment, "B-Q4", [True] * 60 + [False] * 40, tmp_path / "b")
    assert main(["report", "--store", store, "--profile", "smoke", "--out", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    one_seed = "toy, against B-FP: B-Q4 differs on these examples (one seed; another may differ)."
    assert output.startswith(one_seed) and "better" not in output and "worse" not in output
    assert output.endswith(f"report: {tmp_path / 'out' / 'report.html'}\n")
    assert one_seed in (tmp_path / "out/report.md").read_text()
    assert "http://127.0.0.1:5000/#/experiments/" in (tmp_path / "out/report.html").read_text()


def test_report_of_a_study_is_made_from_the_bundle_of_its_parts(capsys, tmp_path) -> None:
    from bitrank.tracking.store import open_store

    stores = []
    for config in ("exact-9bits", "uniform-9bits"):
        client = open_store(str(tmp_path / config))
        made = client.create_experiment(
            "bitrank-eight-bits", artifact_location=str(tmp_path / f"{config}-files")
        )
        _finished(client, made, config, [True] * 90 + [False] * 10, tmp_path / f"of-{config}")
        plans = [{"config": config, "task": "toy", "budget": 9.0}]
        costs = {"references": ["exact-9bits"], "plans": plans, "left_out": []}
        (tmp_path / f"{config}.json").write_text(json.dumps(costs))
        stores += ["--store", str(tmp_path / config)]
    assert main(["evidence", *stores, "--out", str(tmp_path / "whole")]) == 0
    parts = [
        word for config in ("exact", "uniform") for word in ("--planning", f"{tmp_path}/{config}-9bits.json")
    ]
    capsys.readouterr()
    arguments = ["--store", str(tmp_path / "whole"), *parts, "--out", str(tmp_path / "out")]
    assert main(["report", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "| exact-9bits | – |" in shown and "| uniform-9bits | exact-9bits |" in shown
    assert (tmp_path / "out/report.md").read_text() + "\n" == shown
    arguments[-3] = str(tmp_path / "absent.json")
    assert "absent.json cannot be read" in fails(capsys, "report", *arguments)


def test_report_names_the_error_and_exits_with_2(capsys, tmp_path) -> None:
    from bitrank.tracking.store import open_store

    assert "there is no store at" in fails(capsys, "report")
    open_store(str(tmp_path / "runs"))
    assert "it is empty or another tool's" in fails(capsys, "report", "--store", str(tmp_path / "runs"))
    assert "not allowed with argument" in fails(capsys, "report", "--profile", "smoke", "--experiment", "x")
    assert "unknown profile 'smok'; nearest: smoke" in fails(
        capsys, "report", "--profile", "smok", "--store", str(tmp_path / "runs")
    )


def test_list_prints_every_arm_with_a_line_and_its_source(capsys) -> None:
    assert main(["list", "--arms", "--json"]) == 0
    listed = {row["arm"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(listed) == {*CONFIGS, *SYSTEM_ARMS}
    assert listed["qr-adaptor"]["source"] == "QR-Adaptor; Zhou et al. 2025"
    assert all(row["about"] for row in listed.values())
    assert all(row["source"] for row in listed.values() if row["family"] == SYSTEM)
    assert main(["list", "--arms"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in CONFIGS) and "Mao et al. 2024" in shown
