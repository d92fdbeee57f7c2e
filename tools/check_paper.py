"""Fail when the built paper is not fit to be sent out. usage: check_paper.py FOLDER (which holds main.tex,
main.log, main.pdf, words.txt)

LaTeX's log, references, hand-typed numbers, fonts and spelling. Only the standard library, pdffonts and
aspell are needed.
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
# Commands whose argument is a name or a measure and no prose.
_NAMED = (
    r"\\(?:label|ref|eqref|cite[tp]?|citet|input|val|ifval|begin|end|bibliography|bibliographystyle|includegraphics|setlength|vspace|url)"
    r"\*?(?:\[[^]]*\])?\{[^{}]*\}(?:\{(?:l|r|c)+\}|\{[\d.]+(?:pt|em|cm)\})?"
)
_MATH = r"\\begin\{equation\}.*?\\end\{equation\}|\$[^$]*\$"
# A number that is no part of a name (Joint-1, bf16, SmolLM2-135M, Apache-2.0).
_NUMBER = r"(?<![A-Za-z0-9_.,])(?<![A-Za-z0-9]-)\d+(?:[.,]\d+)*(?:\s*\\%)?(?!-bit)"
_IN_MATH = r"\d+[.,]\d+|\d+\s*\\%"


def main(folder: Path) -> int:
    """Print what is wrong, or that all is well; the exit code."""
    main_tex = (folder / "main.tex").read_text(encoding="utf-8")
    body = main_tex.split(r"\begin{document}", 1)[1]
    texts = dict(inputs(folder, body))
    whole = "\n".join(texts.values())
    prose = "\n".join(
        text for name, text in texts.items() if name != "remarks.tex"
    )  # that one quotes what runs said
    words = (folder / "words.txt").read_text(encoding="utf-8").split()
    wrong = [
        *log_faults((folder / "main.log").read_text(encoding="utf-8", errors="replace")),
        *unreferenced(whole),
        *typed_numbers(body),
    ]
    wrong += [*font_faults(_run("pdffonts", str(folder / "main.pdf"))), *misspelled(prose, words)]
    for fault in wrong:
        print(f"paper: {fault}", file=sys.stderr)
    if not wrong:
        print("paper: references, numbers, fonts and spelling are in order")
    return 1 if wrong else 0


def inputs(folder: Path, text: str, name: str = "main.tex") -> Iterator[tuple[str, str]]:
    """(name, text without comments) of the body and of every file that it inputs."""
    plain = re.sub(r"(?<!\\)%[^\n]*", "", text)
    yield name, plain
    for found in re.finditer(r"\\input\{([^}]+)\}", plain):
        path = folder / (found[1] if found[1].endswith(".tex") else f"{found[1]}.tex")
        if path.exists():  # what a study lacks is not written, and main.tex asks before it inputs it
            yield from inputs(folder, path.read_text(encoding="utf-8"), path.name)


def log_faults(log: str) -> list[str]:
    """Undefined references and citations, missing letters, errors, and boxes that stick out by 5 points or
    more.
    """
    return [found[0] for pattern in _LOG for found in re.finditer(pattern, log, re.MULTILINE)]


def unreferenced(text: str) -> list[str]:
    """Figures and tables that no sentence refers to, and references without a label."""
    labels = set(re.findall(r"\\label\{([^}]+)\}", text))
    refs = set(re.findall(r"\\(?:eq|page|auto)?ref\{([^}]+)\}", text))
    lost = [
        f"no sentence refers to {label}"
        for label in sorted(labels - refs)
        if label.startswith(("fig:", "tab:"))
    ]
    return lost + [f"\\ref{{{ref}}} has no label" for ref in sorted(refs - labels)]


def typed_numbers(body: str) -> list[str]:
    """Numbers typed into main.tex: they must be values of the store or constants, which have names."""
    plain = re.sub(_NAMED, " ", re.sub(r"(?<!\\)%[^\n]*", "", body))
    math = re.findall(_MATH, plain, re.DOTALL)
    prose = re.sub(_MATH, " ", plain, flags=re.DOTALL)
    found = [(match[0], _around(prose, match)) for match in re.finditer(_NUMBER, prose)]
    found += [(match[0], formula) for formula in math for match in re.finditer(_IN_MATH, formula)]
    return [f"number typed by hand: {number!r} in {place!r}" for number, place in found]


def font_faults(listing: str) -> list[str]:
    """Fonts of pdffonts' listing that are not embedded, or drawn as bitmaps (Type 3)."""
    lines = listing.splitlines()[2:]
    if not lines:
        return ["pdffonts lists no font"]
    return [
        f"font not embedded, or Type 3: {line.split()[0]}"
        for line in lines
        if "Type 3" in line or line.split()[-5] != "yes"
    ]


def misspelled(text: str, known: list[str]) -> list[str]:
    """Words that aspell's British dictionary and ``known`` lack."""
    prose = re.sub(r"\\begin\{tabular\}.*?\\end\{tabular\}", " ", text, flags=re.DOTALL).replace("\\_", "_")
    prose = re.sub(_MATH, " ", re.sub(_NAMED, " ", prose), flags=re.DOTALL)
    prose = re.sub(r"\[[a-z]+\]|\b\w*[\d_]\w*\b|\\[A-Za-z@]+", " ", prose)
    asked = _run("aspell", "list", "--lang=en_GB", "--encoding=utf-8", "--mode=none", given=prose)
    return [
        f"spelling: {word} (if it is right, add it to words.txt)"
        for word in sorted(set(asked.split()) - set(known))
    ]


def _around(text: str, match: re.Match[str]) -> str:
    return " ".join(text[max(0, match.start() - 30) : match.end() + 20].split())


def _run(*command: str, given: str | None = None) -> str:
    return subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
