"""LaTeX prints text literally; keys that the paper cannot reference raise an error."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from bitrank_analysis import AnalysisError
from bitrank_analysis.paper.latex import COMMANDS, definitions, escape, tabular
from bitrank_analysis.paper.latex_floats import file_name
from hypothesis import given
from hypothesis import strategies as st

COMMAND = re.compile(
    r"\\[A-Za-z]+\{\}|\\texttt\{U\+[0-9A-F]+\}|\\[&%$#_{},]|\$(?:-|<|>|\\times|\\pm|\\rightarrow)\$|-\{\}-|~"
)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("movie_sentences", r"movie\_sentences"),
        ("95 % of R&D", r"95\,\% of R\&D"),
        ("−2.9 to +1.0", r"$-$2.9 to +1.0"),
        ("p < 0.001, q = 1", r"p~$<$~0.001, q~=~1"),
        ("layers 0–5", r"layers 0\textendash{}5"),
        ("--jobs 2", r"-{}-jobs 2"),
        ("24 MiB", r"24~MiB"),
        ("a\nb  c", "a b c"),
        (r"C:\tmp {x}^~#$", r"C:\textbackslash{}tmp \{x\}\textasciicircum{}\textasciitilde{}\#\$"),
        ("naïve 漢", r"naïve \texttt{U+6F22}"),
        ("Ħal Łódź", r"\texttt{U+0126}al Łódź"),
        ("a\x1bb", r"a\texttt{U+001B}b"),
    ],
)
def test_escape_gives_the_expected_latex(text: str, printed: str) -> None:
    assert escape(text) == printed


@given(st.text())
def test_escaped_text_has_no_active_characters(text: str) -> None:
    rest = COMMAND.sub("", escape(text))
    assert not set(rest) & set("\\&%$#_{}^~")
    assert all(letter.isascii() or (letter.isalpha() and ord(letter) < 0x180) for letter in rest)


def test_definitions_escape_values_and_reject_invalid_keys() -> None:
    assert definitions({"a_b/B-FP/n": "1 %"}) == "\\bitrank@def{a_b/B-FP/n}{1\\,\\%}\n"
    with pytest.raises(AnalysisError, match=r"got 'task/50%/n'; rename"):
        definitions({"task/50%/n": "1"})


def test_figures_of_different_tasks_have_different_names_that_tex_can_include() -> None:
    assert file_name("forest", "movie_sentences") == "forest-movie-sentences.pdf"
    names = {file_name("forest", task) for task in ("a_b", "a-b", "a.b", "a b", "文" * 80, "文" * 80 + "a")}
    assert len(names) == 6 and all(len(name.encode()) <= 234 for name in names)
    assert not set("".join(names)) & set(" _%#{}\\")


def test_tabular_gives_the_expected_latex() -> None:
    table = tabular("lr", ["Arm", "Test %"], [("a_b", [["B-FP", "1"]]), ("", [["B-Q4", "−2"]])])
    assert table.splitlines() == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"Arm & Test\,\% \\",
        r"\midrule",
        r"\multicolumn{2}{@{}l}{\textit{a\_b}} \\",
        r"B-FP & 1 \\",
        r"\midrule",
        r"B-Q4 & $-$2 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


@pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="needs pdflatex (Debian: texlive-latex-recommended)"
)
def test_latex_prints_values_and_stops_at_a_missing_one(tmp_path: Path) -> None:
    letters = "".join(map(chr, [*range(0x20), *range(0x7F, 0x180)]))
    special_text = letters + r"""50% & $1 #2 _x_ {y} ^z~ \w "q" 'r' a|b <c> – − × · → ± -- é 漢"""
    preamble = (
        r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage[utf8]{inputenc}\usepackage{textcomp}"
    )
    macros = COMMANDS + definitions({"movie_sentences/n": special_text}) + "\\makeatother\n"
    document = (
        r"\begin{tabular}{ll}\ifval{none}{\val{none} & x \\}{}\val{movie_sentences/n} & y\\ \end{tabular}"
    )

    def latex(body: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "t.tex").write_text(
            preamble + macros + r"\begin{document}" + body + r"\end{document}", encoding="utf-8"
        )
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False
        )

    assert latex(document).returncode == 0
    stopped = latex(r"\val{movie_sentences/m}")
    assert (
        stopped.returncode != 0
        and "the store gave no value `movie_sentences/m'" in stopped.stdout.replace("\n", "")
    )
