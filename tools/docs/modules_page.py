"""``reference/api/bitrank.md``: the orchestrator's modules with the first paragraphs of their docstrings."""

from __future__ import annotations

import ast
from pathlib import Path

from cells import table

SOURCE = Path(__file__).resolve().parents[2] / "orchestrator" / "src" / "bitrank"


def modules_page() -> str:
    """The page as Markdown: a table for each folder."""
    lines = [
        "# bitrank (orchestrator)",
        "",
        "Modules by folder, with the first paragraph of each docstring, generated from the sources.",
        "[Architecture](../../architecture.md) says how they fit together.",
        "",
    ]
    folders = sorted({path.parent for path in SOURCE.rglob("*.py")})
    for folder in folders:
        name = ".".join(("bitrank", *folder.relative_to(SOURCE).parts))
        lines += [f"## {name}", "", *_first_paragraph(folder / "__init__.py"), ""]
        modules = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
        rows = [(f"`{path.stem}`", " ".join(_first_paragraph(path))) for path in modules]
        lines += table(("module", "about"), rows)
    return "\n".join(lines)


def _first_paragraph(path: Path) -> list[str]:
    if not path.exists():
        return []
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n\n")[0].replace("``", "`").splitlines()
