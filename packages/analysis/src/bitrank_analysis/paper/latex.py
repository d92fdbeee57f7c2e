"""Text, named values and tables as LaTeX. A value that the paper asks for and the store does not give stops the build."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.tables import latex_escape

NOTICE = "% Written by `bitrank paper` from the run store. Do not edit: the next build replaces it.\n"
# \val{key} prints a value and fails without it; \ifval{key}{then}{else} asks whether there is one. Both expand, so they work in tables.
COMMANDS = r"""\makeatletter
\newcommand{\bitrank@def}[2]{\expandafter\def\csname bitrank@#1\endcsname{#2}}
\newcommand{\ifval}[1]{\ifcsname bitrank@#1\endcsname\expandafter\@firstoftwo\else\expandafter\@secondoftwo\fi}
\newcommand{\val}[1]{\ifval{#1}{\csname bitrank@#1\endcsname}{\bitrank@missing{#1}}}
\newcommand{\bitrank@missing}[1]{\PackageError{bitrank}{the store gave no value `\detokenize{#1}'}{Guard it with \string\ifval.}}
"""
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
    """``text`` so that LaTeX prints it as it is. A letter that the paper's fonts lack is printed by its number, never dropped."""
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
    if known != letter or letter.isascii() or (letter.isalpha() and ord(letter) < 0x180):
        # A dash of the table of escapes must not be taken apart as a doubled hyphen.
        return r"\textendash{}" if known == "--" else known
    return rf"\texttt{{U+{ord(letter):04X}}}"


def definitions(values: Mapping[str, str]) -> str:
    """One line a value, given as plain text. Raises :class:`AnalysisError` on a key that could not be written in the paper."""
    odd = [key for key in values if not _KEY.fullmatch(key)]
    if odd:
        raise AnalysisError(
            f"expected names of letters, digits and _ . / + -, got {odd[0]!r}; rename that config, task or library"
        )
    return "".join(f"\\bitrank@def{{{key}}}{{{escape(value)}}}\n" for key, value in values.items())


def tabular(columns: str, head: Sequence[str], groups: Sequence[tuple[str, Sequence[Sequence[str]]]]) -> str:
    """A booktabs ``tabular`` from plain text. ``groups`` are (heading, rows); a heading spans the table, "" makes none."""
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _row(head)]
    for heading, rows in groups:
        lines.append(r"\midrule")
        if heading:
            lines.append(rf"\multicolumn{{{len(head)}}}{{@{{}}l}}{{\textit{{{escape(heading)}}}}} \\")
        lines += [_row(row) for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def sentences(said: Sequence[str]) -> str:
    """Plain sentences as one paragraph of LaTeX, a line each."""
    return "".join(f"{escape(sentence)}\n" for sentence in said)


def listed(heading: str, said: Sequence[str]) -> str:
    """Plain sentences as a list under a run-in heading. "" without any."""
    items = "".join(rf"\item {escape(sentence)}" + "\n" for sentence in said)
    return (
        rf"\paragraph{{{escape(heading)}.}}" + f"\\mbox{{}}\n\\begin{{itemize}}\n{items}\\end{{itemize}}\n"
        if said
        else ""
    )


def _row(cells: Sequence[str]) -> str:
    return " & ".join(escape(cell) for cell in cells) + r" \\"
