"""Check the built paper before it is submitted: LaTeX's log, references, typed numbers, fonts, spelling.

usage: check_paper.py FOLDER (with main.tex, main.log, main.pdf, words.txt). Needs pdffonts and aspell.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_LOG = (
    r"LaTeX Warning: (?:Reference|Citation|Label|There were)[^\n]*",
    r"Package natbib Warning: (?:Citation|There were)[^\n]*",
    r"Missing character[^\n]*",
    r"^![^\n]*",
    r"Overfull \\[hv]box \((?:[5-9]|\d{2,})(?:\.\d+)?pt too [^\n]*",
)
# Commands whose argument is a name or a length, not prose.
_NAMED = (
    r"\\(?:label|ref|eqref|cite[tp]?|citet|input|val|ifval|begin|end|bibliography|bibliographystyle|"
    r"includegraphics|setlength|vspace|url)"
    r"\*?(?:\[[^]]*\])?\{[^{}]*\}(?:\{(?:l|r|c)+\}|\{[\d.]+(?:pt|em|cm)\})?"
)
_MATH = r"\\begin\{equation\}.*?\\end\{equation\}|\$[^$]*\$"
# A number that is not part of a name (Joint-1, bf16, SmolLM2-135M, Apache-2.0).
_NUMBER = r"(?<![A-Za-z0-9_.,])(?<![A-Za-z0-9]-)\d+(?:[.,]\d+)*(?:\s*\\%)?(?!-bit)"
_IN_MATH = r"\d+[.,]\d+|\d+\s*\\%"


def main(folder: Path) -> int:
    """Print all faults; returns the exit code."""
    main_tex = (folder / "main.tex").read_text(encoding="utf-8")
    body = main_tex.split(r"\begin{document}", 1)[1]
    texts = dict(inputs(folder, body))
    whole = "\n".join(texts.values())
    # remarks.tex quotes error messages of runs.
    prose = "\n".join(text for name, text in texts.items() if name != "remarks.tex")
    words = (folder / "words.txt").read_text(encoding="utf-8").split()
    faults = [
        *log_faults((folder / "main.log").read_text(encoding="utf-8", errors="replace")),
        *unreferenced(whole),
        *typed_numbers(body),
    ]
    faults += [*font_faults(_run("pdffonts", str(folder / "main.pdf"))), *misspelled(prose, words)]
    for fault in faults:
        print(f"paper: {fault}", file=sys.stderr)
    if not faults:
        print("paper: references, numbers, fonts and spelling are in order")
    return 1 if faults else 0


def inputs(folder: Path, text: str, name: str = "main.tex") -> Iterator[tuple[str, str]]:
    """(name, text without comments) of the body and of all its input files."""
    plain = re.sub(r"(?<!\\)%[^\n]*", "", text)
    yield name, plain
    for found in re.finditer(r"\\input\{([^}]+)\}", plain):
        path = folder / (found[1] if found[1].endswith(".tex") else f"{found[1]}.tex")
        if path.exists():  # files without data are not written; main.tex tests for them
            yield from inputs(folder, path.read_text(encoding="utf-8"), path.name)


def log_faults(log: str) -> list[str]:
    """Undefined references and citations, missing characters, errors, and boxes overfull by 5 points."""
    return [found[0] for pattern in _LOG for found in re.finditer(pattern, log, re.MULTILINE)]


def unreferenced(text: str) -> list[str]:
    """Figures and tables without a reference, and references without a label."""
    labels = set(re.findall(r"\\label\{([^}]+)\}", text))
    refs = set(re.findall(r"\\(?:eq|page|auto)?ref\{([^}]+)\}", text))
    lost = [
        f"no sentence refers to {label}"
        for label in sorted(labels - refs)
        if label.startswith(("fig:", "tab:"))
    ]
    return lost + [f"\\ref{{{ref}}} has no label" for ref in sorted(refs - labels)]


def typed_numbers(body: str) -> list[str]:
    """Numbers typed into main.tex, where named values of the store or named constants are required."""
    plain = re.sub(_NAMED, " ", re.sub(r"(?<!\\)%[^\n]*", "", body))
    math = re.findall(_MATH, plain, re.DOTALL)
    prose = re.sub(_MATH, " ", plain, flags=re.DOTALL)
    found = [(match[0], _around(prose, match)) for match in re.finditer(_NUMBER, prose)]
    found += [(match[0], formula) for formula in math for match in re.finditer(_IN_MATH, formula)]
    return [f"number typed by hand: {number!r} in {place!r}" for number, place in found]


def font_faults(listing: str) -> list[str]:
    """Fonts in the output of pdffonts that are not embedded, or bitmaps (Type 3)."""
    lines = listing.splitlines()[2:]
    if not lines:
        return ["pdffonts lists no font"]
    return [
        f"font not embedded, or Type 3: {line.split()[0]}"
        for line in lines
        if "Type 3" in line or line.split()[-5] != "yes"
    ]


def misspelled(text: str, known: list[str]) -> list[str]:
    """Words that are neither in aspell's British dictionary nor in ``known``."""
    prose = re.sub(r"\\begin\{tabular\}.*?\\end\{tabular\}", " ", text, flags=re.DOTALL).replace("\\_", "_")
    prose = re.sub(_MATH, " ", re.sub(_NAMED, " ", prose), flags=re.DOTALL)
    prose = re.sub(r"\[[a-z]+\]|\b\w*[\d_]\w*\b|\\[A-Za-z@]+", " ", prose)
    unknown = _run("aspell", "list", "--lang=en_GB", "--encoding=utf-8", "--mode=none", given=prose)
    return [
        f"spelling: {word} (if correct, add it to words.txt)"
        for word in sorted(set(unknown.split()) - set(known))
    ]


def _around(text: str, match: re.Match[str]) -> str:
    return " ".join(text[max(0, match.start() - 30) : match.end() + 20].split())


def _run(*command: str, given: str | None = None) -> str:
    return subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
