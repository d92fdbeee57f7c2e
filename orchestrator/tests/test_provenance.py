"""What counts as the code of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from bitrank import provenance
from bitrank.configs import CONFIGS
from bitrank.provenance import code_id, git_state


@pytest.fixture
def rules(tmp_path, monkeypatch) -> Path:
    """A copy of ``rules.py`` that a test may change."""
    here = Path(provenance.__file__).parent
    (tmp_path / "rules.py").write_text((here / "rules.py").read_text())
    monkeypatch.setattr(provenance, "shared_code", lambda: "shared")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    provenance._rules_code.cache_clear()
    yield tmp_path / "rules.py"
    provenance._rules_code.cache_clear()


def code_of(name: str) -> str:
    provenance._rules_code.cache_clear()
    return code_id(CONFIGS[name].precision, CONFIGS[name].rank)


def test_a_rule_added_leaves_the_others_as_they_are(rules) -> None:
    before = {name: code_of(name) for name in CONFIGS}
    rules.write_text(rules.read_text() + "\n\nclass Another:\n    pass\n")
    assert {name: code_of(name) for name in CONFIGS} == before


def test_a_rule_changed_makes_only_its_arms_stale(rules) -> None:
    before = {name: code_of(name) for name in CONFIGS}
    text = rules.read_text()
    rules.write_text(text.replace("class ByRole:", "class ByRole:\n    changed = True\n"))
    assert rules.read_text() != text
    assert [name for name in CONFIGS if code_of(name) != before[name]] == ["Joint-3"]


@pytest.mark.parametrize(
    ("told", "tags"),
    [
        ("", {}),
        ("4f1c", {"git_commit": "4f1c", "dirty": "false", "mlflow.source.git.commit": "4f1c"}),
        ("4f1c-dirty", {"git_commit": "4f1c", "dirty": "true", "mlflow.source.git.commit": "4f1c"}),
    ],
)
def test_an_image_says_its_own_commit(monkeypatch: pytest.MonkeyPatch, told: str, tags: dict[str, str]) -> None:
    """There is neither git nor a checkout in an image."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("BITRANK_COMMIT", told)
    assert git_state.__wrapped__() == tags
