"""Check that a package's changelog has its version. Usage: check_release.py PACKAGE_FOLDER."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def main(folder: Path) -> int:
    """0 if the changelog in ``folder`` has a heading for the version in its sources, else 2."""
    source = next((folder / "src").glob("*/__init__.py")).read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    version = match[1] if match else "?"
    changelog = (folder / "CHANGELOG.md").read_text(encoding="utf-8")
    if re.search(rf"^## {re.escape(version)}\b", changelog, re.MULTILINE):
        print(f"{folder.name} {version}")
        return 0
    print(
        f"{folder / 'CHANGELOG.md'} has no heading '## {version}'; "
        "add the changes of this version before the release",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
