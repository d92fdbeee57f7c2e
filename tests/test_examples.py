"""The scripts and notebooks in ``examples/`` run, with tiny models in place of real ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
# Replacements of the real model by a tiny one; each replaced text must be in the notebook.
TINY = {
    "quantize_one_matrix": {'"minilm"': '"tiny-bert"'},
    "train_with_a_plan": {
        '"minilm", "movie_sentences", "9MB"': '"tiny-bert", "toy_sentences", "120kB"',
        'PROFILE, STEPS = "laptop", 200': 'PROFILE, STEPS = "smoke", 12',
    },
}
ARGUMENTS = {
    "quantize_one_matrix": ["--model", "tiny-bert"],
    "train_with_a_plan": [
        *("--model", "tiny-bert"),
        *("--task", "toy_sentences"),
        *("--budget", "120kB"),
        *("--profile", "smoke"),
        *("--steps", "12"),
    ],
}


def test_every_example_is_a_script_and_a_notebook() -> None:
    scripts = [path.stem for path in sorted(EXAMPLES.glob("*.py"))]
    assert [path.stem for path in NOTEBOOKS] == scripts == sorted(TINY)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_without_outputs(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    assert [cell["source"] for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for real, tiny in TINY[path.stem].items():
        assert any(real in cell.source for cell in code), real
        for cell in code:
            cell.source = cell.source.replace(real, tiny)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [out.get("data", {}).get("text/html", "") for cell in code for out in cell.outputs]
    assert sum("vegaEmbed" in html for html in shown) == 1, "one figure"


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_script_runs(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *ARGUMENTS[name]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    if name == "train_with_a_plan":
        assert "test accuracy: " in done.stdout
        assert (tmp_path / "train-with-a-plan/adapter/adapter_model.safetensors").is_file()
        assert json.loads((tmp_path / "plan.json").read_text())["bytes"] <= 120_000
        return
    rows = {
        line.split()[0]: [float(part) for part in line.split()[1:]] for line in done.stdout.splitlines()[1:-1]
    }
    assert (
        rows["int2-g64"][1]
        > rows["int3-g64"][1]
        > rows["int4-g64"][1]
        > rows["int8"][1]
        > rows["bf16"][1]
        > 0
    )
    assert rows["bf16"][0] == 16
    assert "<svg" in (tmp_path / "quantization-error.svg").read_text()
