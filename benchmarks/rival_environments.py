"""Rivals in environments of their own: installation, the request that all get, and their result or error."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitrank.models.load import load_tokenizer
from bitrank.models.locate import folder_of
from bitrank.sensitivity.calibration import calibration
from bitrank.spec.run_spec import RunSpec
from rival_arms import budget_bytes
from rival_scripts.exchange import Request, write_request

SCRIPTS = Path(__file__).with_name("rival_scripts")


@dataclass(frozen=True)
class Rival:
    """``packages`` are installed in a new environment, in which ``script`` runs. Rivals with the same
    ``environment`` share it."""

    environment: str
    script: str
    packages: tuple[str, ...]


def rival_request(spec: RunSpec, budgets: Sequence[float], count: int | None = None) -> Request:
    """The model, calibration windows, and the budgets in bytes.

    The first windows are those of our scores, the others those on which our plans are chosen; without
    ``count`` a rival gets all of them.
    """
    ready = calibration(spec)
    windows = [
        [int(token) for token in ids[mask.astype(bool)]]
        for batch in (*ready.many, *ready.held_out)
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ][:count]
    blocks = [m for m in ready.matrices if m.adaptable]
    tokenizer = load_tokenizer(spec.model_source)
    return Request(
        str(folder_of(spec.model_source)),
        windows,
        [tokenizer.decode(window) for window in windows],
        {m.name: m.shape for m in blocks},
        {str(bits): budget_bytes(blocks, bits) for bits in budgets},
    )


def run_rival(rival: Rival, request: Request, folder: Path, environments: Path | None) -> dict[str, Any]:
    """The result of ``rival``, which works in ``folder``, or its error.

    Its environment is made below ``environments`` if it is missing there, by default in ``folder``.
    """
    place = (environments or folder) / rival.environment
    python = place / "bin" / "python"
    made = place / "installed"
    if not made.exists():
        problem = run_command([sys.executable, "-m", "venv", "--clear", str(place)])
        problem = problem or run_command([str(python), "-m", "pip", "install", "-q", *rival.packages])
        if problem:
            return {"error": f"cannot be installed: {problem}"}
        made.touch()
    write_request(folder, request)
    problem = run_command([str(python), str(SCRIPTS / rival.script), str(folder)])
    return {"error": problem} if problem else dict(json.loads((folder / "result.json").read_text()))


def run_command(command: list[str]) -> str:
    """Run ``command`` without our own modules on its path; its error in one line, empty if none."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0:
        return ""
    print(done.stderr, file=sys.stderr, flush=True)
    if done.returncode < 0:
        return f"ended by {signal.Signals(-done.returncode).name}"
    return error_line(done.stderr) or f"exit code {done.returncode}"


def error_line(text: str) -> str:
    """The last line of ``text`` that names an exception or begins with ERROR, else its last line."""
    lines = text.strip().splitlines()
    named = [line for line in lines if re.match(r"ERROR|[\w.]+(Error|Exception)\b", line)]
    return (named or lines or [""])[-1]
