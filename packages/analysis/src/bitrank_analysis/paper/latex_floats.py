"""Figures as PDF and their LaTeX floats: tasks side by side in the text, one per float in appendices."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from bitrank_analysis import phrasing
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.evidence import Evidence
from bitrank_analysis.figures import FIGURES, Figure, pdf
from bitrank_analysis.files import name_of, write_atomically
from bitrank_analysis.paper.latex import escape

# Figures side by side in the text, and alone at full width in an appendix.
PAIRED = ("quality-bytes", "forest", "recovery", "memory")
ALONE = ("rank-map", "bits-map")


def draw(evidence: Sequence[Evidence], name: str, folder: Path) -> list[tuple[Evidence, Figure]]:
    """Write ``<name>-<task>.pdf`` for every task that has the figure; return (task, figure) pairs."""
    drawn = []
    for task in evidence:
        try:
            figure = FIGURES[name](task)
        except AnalysisError:
            continue  # the report gives the reason; the paper omits the float
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / file_name(name, task.task), pdf(figure))
        drawn.append((task, figure))
    return drawn


def file_name(name: str, task: str) -> str:
    """A file name that TeX can include; a hash tells tasks apart that differ only in other characters."""
    letters = "".join(letter if letter.isalnum() else "-" for letter in task)
    if letters != task.replace("_", "-") or "-" in task:
        letters += f"-{hashlib.sha256(os.fsencode(task)).hexdigest()[:8]}"
    return f"{name_of(name, letters)}.pdf"


def paired(name: str, drawn: Sequence[tuple[Evidence, Figure]]) -> str:
    """Two panels per row, each with the figure's title and note below it; "" without figures."""
    return "\\hfill\n".join(_panel(name, task, figure, "0.485\\linewidth") for task, figure in drawn)


def alone(name: str, drawn: Sequence[tuple[Evidence, Figure]]) -> str:
    """One float per task, labelled ``fig:<name>-<task>``, after a sentence that references all; or ""."""
    made = [(task, _graphic(name, task), f"{figure.title}. {figure.note}") for task, figure in drawn]
    return _floats("figure", "fig", name, made)


def alone_tables(name: str, caption: str, made: Sequence[tuple[Evidence, str]]) -> str:
    """One float per task, labelled ``tab:<name>-<task>``, after a sentence that references all.

    Tasks whose ``tabular`` is "" are omitted.
    """
    return _floats(
        "table", "tab", name, [(task, text, f"{task.task}: {caption}.") for task, text in made if text]
    )


def _floats(kind: str, short: str, name: str, made: Sequence[tuple[Evidence, str, str]]) -> str:
    """Floats from (task, body, caption), after a sentence that references all; "" without any."""
    sentences, set_ = [], []
    for task, body, caption in made:
        label = f"{short}:{file_name(name, task.task).removesuffix('.pdf')}"
        sentences.append(rf"{kind.capitalize()}~\ref{{{label}}}")
        head = rf"\caption{{{escape(caption)}}}\label{{{label}}}"
        order = [head, body] if kind == "table" else [body, head]
        set_.append(
            "\n".join([rf"\begin{{{kind}}}[htbp]", r"\centering\small", *order, rf"\end{{{kind}}}", ""])
        )
    return f"See {phrasing.listed(sentences)}.\n\n" + "\n".join(set_) if made else ""


def _panel(name: str, task: Evidence, figure: Figure, width: str) -> str:
    caption_text = (
        rf"\smallskip\raggedright\footnotesize \textbf{{{escape(figure.title)}.}} {escape(figure.note)}"
    )
    return "\n".join(
        [
            rf"\begin{{minipage}}[t]{{{width}}}",
            r"\centering",
            _graphic(name, task),
            "",
            caption_text,
            r"\end{minipage}",
        ]
    )


def _graphic(name: str, task: Evidence) -> str:
    size = r"width=\linewidth,height=0.8\textheight,keepaspectratio"
    return rf"\includegraphics[{size}]{{generated/figures/{file_name(name, task.task)}}}"
