"""The first example of the README runs unchanged."""

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
    for index, config in enumerate(("B-FP", "B-Q4", "B-Ada", "Joint-1")):
        maker.classifier(config, [i > index for i in range(40)], experiment="bitrank-laptop")
        maker.language_model(
            config, [30.0 + index + i / 9 for i in range(9)], [10] * 9, experiment="bitrank-laptop"
        )
    match = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert match is not None
    monkeypatch.chdir(tmp_path)
    exec(compile(match[1], "README.md", "exec"), {"__name__": "readme"})
    output = capsys.readouterr().out
    for expected in ("unresolved", "differs on", "interaction", "One seed was run"):
        assert expected in output
