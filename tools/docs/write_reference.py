"""Write the reference pages that are made from the code: ``python tools/docs/write_reference.py``.

The pages are committed, so that links to them also work where the repository is browsed. A test compares them
with the code.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from cli_page import cli_page
from names_page import names_page
from spec_page import spec_page

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"
GENERATED: dict[str, Callable[[], str]] = {"cli.md": cli_page, "spec.md": spec_page, "names.md": names_page}


def write_reference(folder: Path = REFERENCE) -> None:
    """Write every page of :data:`GENERATED` into ``folder``."""
    for name, make in GENERATED.items():
        (folder / name).write_text(make().rstrip("\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    # Reading the registries imports bitsandbytes, which warns about optional kernels.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    write_reference()
