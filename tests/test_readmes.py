"""The first example of each package's README runs as it stands, and so does the seventh config of the README at the root."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["data", "planner", "quant", "adapters", "trainer"])
def test_the_first_example_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "packages" / name / "README.md").read_text()
    match = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert match is not None
    exec(compile(match[1], f"{name}/README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.strip()


def test_the_seventh_config_is_these_two_snippets(tmp_path: Path) -> None:
    """Pasted where the README says, into a copy of the orchestrator, and nothing else."""
    text = (ROOT / "README.md").read_text().partition("### A seventh config")[2].partition("\n## ")[0]
    rule, line = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    shutil.copytree(ROOT / "orchestrator" / "src" / "bitrank", tmp_path / "bitrank")
    rules, configs = tmp_path / "bitrank" / "rules.py", tmp_path / "bitrank" / "configs.py"
    rules.write_text(f"{rules.read_text()}\n\n{rule}")
    configs.write_text(configs.read_text().replace("CONFIGS: dict[str, Config] = {\n", f"CONFIGS: dict[str, Config] = {{\n{line}"))
    words = [sys.executable, "-m", "bitrank", "list", "--configs", "Deep-8", "--store", str(tmp_path / "runs")]
    listed = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True, timeout=120)
    assert listed.stdout.count("Deep-8") == 2
