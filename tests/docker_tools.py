"""An engine for docker/run.sh that records its arguments."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

RUN = Path(__file__).resolve().parents[1] / "docker" / "run.sh"


def make_engine(tmp_path: Path) -> Path:
    """A folder for PATH with docker and podman that record their arguments, and id for user 1000:1001."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("docker", "podman"):
        (programs / name).write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" > "{tmp_path}/arguments"\n')
    (programs / "id").write_text('#!/bin/sh\nif [ "$1" = -u ]; then echo 1000; else echo 1001; fi\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    return programs


def call(
    engine: Path, *words: str, folder: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {"PATH": f"{engine}:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
    return subprocess.run(
        [RUN, *words],
        cwd=folder or engine.parent,
        env={**kept, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def recorded_arguments(engine: Path, *words: str, **environment: str) -> list[str]:
    done = call(engine, *words, **environment)
    assert done.returncode == 0, done.stderr
    return (engine.parent / "arguments").read_text().splitlines()


def confined(folder: Path) -> list[str]:
    """The engine arguments of every run, in order, up to the image."""
    return [
        *("run", "--rm", "--read-only"),
        *("--tmpfs", "/tmp"),
        *("--cap-drop", "ALL"),
        *("--security-opt", "no-new-privileges"),
        "--init",
        *("--user", "1000:1001"),
        *("--mount", "type=volume,source=bitrank-cache-1000,target=/cache"),
        *("--mount", f"type=bind,source={folder},target=/study"),
        *("--mount", f"type=bind,source={folder}/runs,target=/study/runs"),
        *("--mount", f"type=bind,source={folder}/results,target=/study/results"),
    ]
