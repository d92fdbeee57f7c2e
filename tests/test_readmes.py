"""The first example of each package's README runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["data", "quant", "adapters", "trainer"])
def test_the_first_example_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "packages" / name / "README.md").read_text()
    match = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert match is not None
    exec(compile(match[1], f"{name}/README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.strip()
