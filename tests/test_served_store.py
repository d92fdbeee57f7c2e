"""Results of a tracking server that stores artifacts: report, bundle and export on the machine behind it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from server_tools import tracking_server
from study_tools import bitrank

STUDY = ("--profile", "smoke", "--tasks", "toy_sentences", "--configs", "B-FP,B-Q4")


@pytest.mark.timeout(600)
def test_runs_of_a_server_are_reported_kept_and_exported_with_its_artifacts(tmp_path: Path) -> None:
    server, work = tmp_path / "server", tmp_path / "work"
    server.mkdir()
    work.mkdir()
    with tracking_server(f"sqlite:///{server / 'mlflow.db'}", server) as store:
        done = bitrank("matrix", *STUDY, "--store", store, cwd=work)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "--artifacts FOLDER (its --artifacts-destination, mounted or copied)" in done.stdout
        query = ["sql", "SELECT run_id FROM runs ORDER BY run_name LIMIT 1", "--format", "csv"]
        run_id = bitrank(*query, "--store", str(server), cwd=work).stdout.split()[1]
        fetch = ["artifacts", "download", "--run-id", run_id, "--dst-path", "my-run"]
        environment = {**os.environ, "MLFLOW_TRACKING_URI": store}
        subprocess.run([sys.executable, "-m", "mlflow", *fetch], cwd=work, env=environment, check=True)
    destination = (server / "artifacts").rename(tmp_path / "mounted")
    database = ("--store", str(server))

    refused = bitrank("evidence", *database, cwd=work)
    assert refused.returncode == 2 and "none of the 2 finished runs of bitrank-smoke" in refused.stderr
    assert "give the folder that has them with --artifacts" in refused.stderr
    artifacts = ("--artifacts", str(destination))
    kept = bitrank("evidence", *database, *artifacts, cwd=work)
    assert kept.returncode == 0 and "no predictions" not in kept.stdout, kept.stdout + kept.stderr
    for source in (
        (*database, *artifacts, "--out", "live"),
        ("--store", "results/evidence", "--out", "again"),
    ):
        assert bitrank("report", *source, cwd=work).returncode == 0
    assert (work / "live/report.md").read_text() == (work / "again/report.md").read_text()
    exported = bitrank("export", "my-run", "--out", "merged", "--force", cwd=work)
    assert exported.returncode == 0, exported.stdout + exported.stderr
