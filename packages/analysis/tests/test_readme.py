"""The README's example runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_first_example_runs(
    new_maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    maker = new_maker(tmp_path / "runs")
    for wrong, config in enumerate(("B-FP", "B-Q4", "B-Ada", "Joint-1")):
        maker.classifier(config, [i > wrong for i in range(40)], experiment="bitrank-laptop")
        maker.language_model(
            config, [30.0 + wrong + i / 9 for i in range(9)], [10] * 9, experiment="bitrank-laptop"
        )
    match = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert match is not None
    monkeypatch.chdir(tmp_path)
    exec(compile(match[1], "README.md", "exec"), {"__name__": "readme"})
    said = capsys.readouterr().out
    assert (
        "unresolved" in said and "differs on" in said and "interaction" in said and "One seed was run" in said
    )
