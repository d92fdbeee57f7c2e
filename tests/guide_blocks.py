"""Parse code blocks of Markdown pages and apply them to a copy of the sources.

A block is used if the line before it is one of these comments:

    <!-- run -->, <!-- run slow -->                    execute it (python or sh)
    <!-- run slow: MODULE -->                          the same; needs an optional Python module
    <!-- file: PATH -->, <!-- append: PATH -->         write it to a new file; add it to the end of one
    <!-- insert after "TEXT": PATH -->, … before …     add it beside the first line that contains TEXT
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_ACTION = r'run(?: slow)?|file|append|insert (after|before) "([^\n]+)"'
_BLOCK = re.compile(rf"^<!-- ({_ACTION})(?:: (\S+))? -->\n```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One block: its text, an action (such as ``run slow``, ``file`` or ``after``) and its target.

    ``path`` is the file of an edit; of a block to execute, an optional module that it needs.
    """

    action: str
    anchor: str
    path: str
    language: str
    text: str


def blocks_of(markdown: str) -> list[Block]:
    """The blocks of a page that have an action, in order."""
    found = []
    for match in _BLOCK.finditer(markdown):
        action, side, anchor, path, language, text = match.groups()
        found.append(Block(side or action, anchor or "", path or "", language, text))
    return found


def missing_modules(blocks: Iterable[Block]) -> list[str]:
    """Optional modules that blocks to execute need and that are not installed."""
    needed = {block.path for block in blocks if block.action.startswith("run") and block.path}
    return sorted(name for name in needed if find_spec(name) is None)


def python_blocks(markdown: str) -> list[str]:
    """Every Python block of ``markdown``, with or without an action."""
    return _PYTHON.findall(markdown)


class SourceCopy:
    """A copy of the sources, and a command ``bitrank`` that runs it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.work = folder / "tree", folder / "work"
        sources = [ROOT / "orchestrator" / "src", *sorted(ROOT.glob("packages/*/src"))]
        ignored = shutil.ignore_patterns("__pycache__")
        for source in sources:
            shutil.copytree(source, self.folder / source.relative_to(ROOT), ignore=ignored)
        command = folder / "bin" / "bitrank"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bitrank "$@"\n')
        command.chmod(0o755)
        self.work.mkdir()
        copies = os.pathsep.join(str(self.folder / source.relative_to(ROOT)) for source in sources)
        path = os.pathsep.join([str(command.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {**os.environ, "PYTHONPATH": copies, "PATH": path}

    def follow(self, blocks: Iterable[Block], slow: bool) -> str:
        """Apply all blocks (slow ones only if ``slow``); returns the output of the executed ones.

        Blocks that need a module that is not installed are left out.
        """
        printed = ""
        for block in blocks:
            if missing_modules([block]):
                continue
            if block.action == "run" or (block.action == "run slow" and slow):
                printed += self.run(block)
            elif block.path and not block.action.startswith("run"):
                self.write(block)
        return printed

    def run(self, block: Block) -> str:
        """Execute one block in the work folder."""
        shells = {"python": [sys.executable, "-"], "sh": ["bash", "-euo", "pipefail", "-s"]}
        command, text = shells[block.language], block.text
        place = {"cwd": self.work, "env": self.environment, "timeout": 600}
        done = subprocess.run(command, input=text, text=True, capture_output=True, check=False, **place)
        assert done.returncode == 0, f"{block.text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def write(self, block: Block) -> None:
        """Write one block to its file."""
        path, text = self.folder / block.path, block.text
        if block.action == "file":
            assert not path.exists(), f"{path} exists already"
            path.write_text(text)
            return
        there = path.read_text()
        if block.action == "append":
            path.write_text(f"{there}\n\n{text}")
            return
        lines = there.splitlines(keepends=True)
        place = next((number for number, line in enumerate(lines) if block.anchor in line), None)
        assert place is not None, f"{block.path} has no line with {block.anchor!r}"
        lines.insert(place + (block.action == "after"), text)
        path.write_text("".join(lines))
