"""The release check fails if the changelog has no heading for the version."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "tools/check_release.py", folder], capture_output=True, text=True, check=False
    )


def test_changelog_must_have_the_version(tmp_path: Path) -> None:
    source = tmp_path / "src" / "some"
    source.mkdir(parents=True)
    (source / "__init__.py").write_text('__version__ = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.1.0\n")
    refused = check(tmp_path)
    assert refused.returncode == 2 and "no heading '## 1.2.0'" in refused.stderr
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.0 — today\n")
    assert check(tmp_path).returncode == 0


def test_every_package_passes_the_release_check() -> None:
    for folder in [*(ROOT / "packages").iterdir(), ROOT / "orchestrator"]:
        assert check(folder).returncode == 0
