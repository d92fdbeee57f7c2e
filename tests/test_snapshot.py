"""``make snapshot``: the archive has the files of the commit, always the same bytes, and nothing else."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    fields = ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL")
    names = {f"GIT_{field}": "a@b.c" for field in fields}
    return subprocess.run(command, cwd=folder, env=os.environ | names, text=True, capture_output=True)


def repository(folder: Path) -> Path:
    (folder / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 0.7.0\n")
    (folder / "code.py").write_text("x = 1\n")
    for command in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "first")):
        assert run("git", *command, folder=folder).returncode == 0
    return folder


def test_snapshot_is_the_commit_byte_for_byte_without_untracked_files(tmp_path: Path) -> None:
    folder = repository(tmp_path)
    commit = run("git", "rev-parse", "--short=12", "HEAD", folder=folder).stdout.strip()
    (folder / ".env").write_text("TOKEN=secret\n")
    made = [run(str(ROOT / "tools/snapshot.sh"), name, folder=folder) for name in ("a", "b")]
    assert [one.returncode for one in made] == [0, 0] and made[0].stdout == made[1].stdout
    name = f"bitrank-0.7.0-{commit}"
    assert made[0].stdout.split()[1] == f"{name}.tar.gz"
    with tarfile.open(folder / "a" / f"{name}.tar.gz") as archive:
        files = [member.name for member in archive.getmembers() if member.isfile()]
    assert sorted(files) == [f"{name}/CITATION.cff", f"{name}/code.py"]


def test_snapshot_refuses_uncommitted_changes_and_names_them(tmp_path: Path) -> None:
    folder = repository(tmp_path)
    (folder / "code.py").write_text("x = 2\n")
    refused = run(str(ROOT / "tools/snapshot.sh"), "out", folder=folder)
    assert refused.returncode == 2 and "M code.py" in refused.stderr and not (folder / "out").exists()
