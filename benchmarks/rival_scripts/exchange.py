"""The files through which `benchmarks/rivals.py` and a rival's own environment exchange a task and a result.

Request: a folder with `request.json`: the folder of the model, the calibration windows as token ids and as
text, the shape (out, in) of each matrix, and the budgets in bytes. Result: the bits of each matrix by budget.
The scales of a group of :data:`GROUP` weights take :data:`SCALE_BITS` bits, as in the formats compared; with
8 bits a whole row is a group.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BITS = (2, 3, 4, 5, 6, 8)  # widths that all methods may choose
GROUP = 64
SCALE_BITS = 32  # a 16-bit scale and a 16-bit minimum
BY_ROW = 8  # bits with one scale for a row
WEIGHTS = "weights.safetensors"
UNQUANTIZED = 16  # bits of a matrix that a rival leaves as it is


@dataclass(frozen=True)
class Request:
    """``windows`` are token ids, ``shapes`` (out, in) by matrix, ``budgets`` bytes of all matrices by name.

    ``width`` is the bits of every matrix if a rival's quantizer is measured, not its allocation.
    """

    model: str
    windows: list[list[int]]
    texts: list[str]
    shapes: dict[str, tuple[int, int]]
    budgets: dict[str, int]
    width: int = 0

    @property
    def weights(self) -> int:
        """Number of weights of all matrices."""
        return sum(rows * columns for rows, columns in self.shapes.values())

    def bits_of(self, budget: str) -> float:
        """Average bits per weight that ``budget`` leaves for codes, without scales."""
        return 8 * self.budgets[budget] / self.weights - SCALE_BITS / GROUP

    def nbytes(self, bits: Mapping[str, int]) -> int:
        """Stored bytes of the matrices at ``bits`` per weight."""
        return sum(self._nbytes(name, width) for name, width in bits.items())

    def _nbytes(self, name: str, bits: int) -> int:
        rows, columns = self.shapes[name]
        groups = {UNQUANTIZED: 0, BY_ROW: rows}.get(bits, rows * -(-columns // GROUP))
        return rows * columns * bits // 8 + SCALE_BITS // 8 * groups


def read_request(folder: Path) -> Request:
    """The request in ``folder``."""
    found = json.loads((folder / "request.json").read_text())
    shapes = {name: (rows, columns) for name, (rows, columns) in found["shapes"].items()}
    return Request(**{**found, "shapes": shapes})


def write_request(folder: Path, request: Request) -> None:
    """Write ``request`` into ``folder``."""
    (folder / "request.json").write_text(json.dumps(vars(request)))


def given_folder() -> Path:
    """The folder that the command line names."""
    return Path(sys.argv[1])


def write_result(folder: Path, packages: list[str], settings: str, **found: Any) -> None:
    """Write ``found`` with the versions of ``packages``, the settings and the CPU seconds so far."""
    versions = {name: importlib.metadata.version(name) for name in packages}
    seconds = round(time.process_time())
    result = {"versions": versions, "settings": settings, "cpu_seconds": seconds, **found}
    (folder / "result.json").write_text(json.dumps(result))


def write_assignments(
    folder: Path, packages: list[str], settings: str, assignments: Mapping[str, Mapping[str, int]]
) -> None:
    """Write bits by matrix and budget."""
    write_result(folder, packages, settings, assignments=assignments)


def write_weights(folder: Path, packages: list[str], settings: str, weights: Mapping[str, Any]) -> None:
    """Write decoded matrices (out, in), tensors of torch."""
    from safetensors.torch import save_file  # not every rival's environment has it

    whole = {name: weight.detach().float().contiguous() for name, weight in weights.items()}
    save_file(whole, folder / WEIGHTS)
    write_result(folder, packages, settings)
