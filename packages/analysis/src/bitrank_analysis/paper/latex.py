"""Text, named values and tables as LaTeX.

A value that the paper uses and the store does not provide stops the LaTeX build.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.tables import latex_escape

NOTICE = "% Written by `bitrank paper` from the run store. Do not edit: the next build replaces it.\n"
# \val{key} prints a value and fails if it is not defined; \ifval{key}{then}{else} tests whether it is.
# Both are expandable, so they work in tables.
COMMANDS = (
    r"\makeatletter"
    "\n"
    r"\newcommand{\bitrank@def}[2]{\expandafter\def\csname bitrank@#1\endcsname{#2}}"
    "\n"
    r"\newcommand{\ifval}[1]{\ifcsname bitrank@#1\endcsname\expandafter\@firstoftwo"
    r"\else\expandafter\@secondoftwo\fi}"
    "\n"
    r"\newcommand{\val}[1]{\ifval{#1}{\csname bitrank@#1\endcsname}{\bitrank@missing{#1}}}"
    "\n"
    r"\newcommand{\bitrank@missing}[1]{\PackageError{bitrank}{the store gave no value `\detokenize{#1}'}"
    r"{Guard it with \string\ifval.}}"
    "\n"
)


class Source(str):
    """LaTeX source in a cell of a table, which is not escaped."""


# Letters below U+0180 that the encoding T1 lacks: they stop the build.
_NOT_IN_T1 = frozenset("ĦħĸĿŀŉŦŧſ")
_KEY = re.compile(r"[A-Za-z0-9_./ +-]+")
_MORE = {
    "'": "'",
    '"': r"\textquotedbl{}",
    "|": r"\textbar{}",
    "·": r"\textperiodcentered{}",
    "→": r"$\rightarrow$",
    "±": r"$\pm$",
}


def escape(text: str) -> str:
    """Escape ``text`` so that LaTeX prints it literally.

    A character that the paper's fonts lack is printed as its code point, never dropped.
    """
    escaped = "".join(_letter(letter) for letter in " ".join(text.split()))
    return (
        escaped.replace(r" \%", r"\,\%")
        .replace(" MiB", "~MiB")
        .replace(" = ", "~=~")
        .replace(" $<$ ", "~$<$~")
        .replace("--", "-{}-")
    )


def _letter(letter: str) -> str:
    known = _MORE.get(letter) or latex_escape(letter)
    in_fonts = letter.isalpha() and ord(letter) < 0x180 and letter not in _NOT_IN_T1
    if known != letter or (letter.isascii() and letter.isprintable()) or in_fonts:
        # escape() splits "--"; the en dash of the escape table must survive that.
        return r"\textendash{}" if known == "--" else known
    return rf"\texttt{{U+{ord(letter):04X}}}"


def definitions(values: Mapping[str, str]) -> str:
    """One definition line per value, given as plain text.

    Raises :class:`AnalysisError` for a key with characters that the paper cannot reference.
    """
    odd = [key for key in values if not _KEY.fullmatch(key)]
    if odd:
        raise AnalysisError(
            f"expected names of letters, digits and _ . / + -, got {odd[0]!r}; rename that config, task or "
            "library"
        )
    return "".join(f"\\bitrank@def{{{key}}}{{{escape(value)}}}\n" for key, value in values.items())


def tabular(columns: str, head: Sequence[str], groups: Sequence[tuple[str, Sequence[Sequence[str]]]]) -> str:
    """A booktabs ``tabular`` from plain text.

    ``groups`` are (heading, rows). A heading spans the table; the heading "" is omitted.
    """
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _row(head)]
    for heading, rows in groups:
        lines.append(r"\midrule")
        if heading:
            lines.append(rf"\multicolumn{{{len(head)}}}{{@{{}}l}}{{\textit{{{escape(heading)}}}}} \\")
        lines += [_row(row) for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def sentences(texts: Sequence[str]) -> str:
    """Plain sentences as one paragraph of LaTeX, one per line."""
    return "".join(f"{escape(sentence)}\n" for sentence in texts)


def listed(heading: str, texts: Sequence[str]) -> str:
    """Plain sentences as a list under a run-in heading; "" without sentences."""
    items = "".join(rf"\item {escape(sentence)}" + "\n" for sentence in texts)
    return (
        rf"\paragraph{{{escape(heading)}.}}" + f"\\mbox{{}}\n\\begin{{itemize}}\n{items}\\end{{itemize}}\n"
        if texts
        else ""
    )


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cell if isinstance(cell, Source) else escape(cell) for cell in cells) + r" \\"
