"""Generation of ``paper/generated`` from the store: every part of the paper that depends on data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.evidence import ORDER, Evidence, gather
from bitrank_analysis.files import write_atomically
from bitrank_analysis.outputs import build_into
from bitrank_analysis.pairable import with_pairable_runs
from bitrank_analysis.paper import latex_floats
from bitrank_analysis.paper import tables as paper_tables
from bitrank_analysis.paper.claims import answer, claims, headline, planned_answer
from bitrank_analysis.paper.descriptions import descriptions
from bitrank_analysis.paper.latex import COMMANDS, NOTICE, definitions, listed, sentences
from bitrank_analysis.paper.planners import (
    Frames,
    draw_planners,
    planners_sentences,
    planners_table,
    read_planners,
)
from bitrank_analysis.paper.published import STUDIES_NOTE, published_table, read_published
from bitrank_analysis.paper.rivals import read_rivals, rivals_sentences, rivals_table
from bitrank_analysis.paper.selection import select
from bitrank_analysis.paper.values import values
from bitrank_analysis.readable import with_readable_runs
from bitrank_analysis.store import open_store
from bitrank_analysis.study import Study, load_study
from bitrank_analysis.tables import tables

# Arms that choose bits or rank or neither; the other arms choose both.
SINGLE = ("B-FP", "B-Q4", "B-Ada")


def write_paper(
    store: str | duckdb.DuckDBPyConnection,
    out_folder: Path | str,
    experiment: str | None = None,
    configs: Sequence[str] = ORDER,
    planners: Sequence[Path] = (),
    published: Sequence[Path] = (),
    rivals: Path | None = None,
) -> Path:
    """Write the inputs of the paper into ``out_folder``, replacing earlier ones; return the folder.

    Other files are neither replaced nor removed. A failed build leaves the earlier one as it was.

    ``macros.tex`` defines every number by name. ``abstract.tex``, ``claims.tex`` and ``answer.tex`` hold
    sentences; ``table-*.tex``, ``figure-*.tex`` and ``appendix-*.tex`` hold tables and figures. ``figures/``
    holds PDFs and ``tables/`` the tables as CSV. ``configs`` are the arms of the study.
    ``planners`` are results folders of studies of planners, which get a table and a figure of their own.
    ``published`` are those of studies whose findings complete the table of published claims.
    ``rivals`` is a folder with comparisons of allocations with those of other tools.
    ``store`` is the URI of a store, or what :func:`~bitrank_analysis.open_store` returned.
    Raises :class:`AnalysisError` if no config has finished, a folder cannot be read or written, or
    ``out_folder`` has files of something else with these names or the ending ``.tex``.
    """
    database = open_store(store) if isinstance(store, str) else store
    study = with_pairable_runs(select(with_readable_runs(load_study(database, experiment)), configs))
    evidence = [gather(study, str(task)) for task in sorted(study.runs["task"].unique())]
    compared, findings, others = read_planners(planners), read_published(published), read_rivals(rivals)
    folder = Path(out_folder)
    try:
        earlier, is_older = _earlier(folder)
        with build_into(folder, "paper", lambda _: is_older, also_earlier=earlier) as making:
            texts = {
                **_texts(study, evidence),
                "table-hypotheses": paper_tables.hypotheses_table(evidence),
                "table-published": published_table(evidence, findings),
                "published-note": STUDIES_NOTE if findings else "",
                "table-rivals": rivals_table(others),
                "rivals": sentences(rivals_sentences(others)),
                **_figures(evidence, making / "figures"),
                **_planners(compared, making / "figures"),
            }
            present = {name: text for name, text in texts.items() if text}
            for name, text in present.items():
                write_atomically(making / f"{name}.tex", NOTICE + text)
            write_atomically(making / "macros.tex", _macros(study, evidence, present))
            for table in (table for task in evidence for table in tables(task)):
                (making / "tables").mkdir(exist_ok=True)
                write_atomically(making / "tables" / f"{table.name}.csv", table.csv())
    except OSError as error:
        raise AnalysisError(
            f"expected a folder to write the paper's inputs to, got {folder}: {error.strerror}; give another"
        ) from error
    return folder


def _earlier(folder: Path) -> tuple[list[str], bool]:
    """The ``.tex`` files of an earlier build in ``folder``, and whether it has the values of one.

    Raises :class:`AnalysisError` for a ``.tex`` file that this module did not write.
    """
    found = sorted(folder.glob("*.tex"))
    mark = NOTICE.rstrip("\n").encode()
    for path in found:
        if not path.read_bytes().startswith(mark):
            raise AnalysisError(
                f"{path} was not written by `bitrank paper`; move it away, or give another folder"
            )
    names = [path.name for path in found]
    return names, "macros.tex" in names


def _macros(study: Study, evidence: Sequence[Evidence], present: dict[str, str]) -> str:
    """Definitions of all values, and of ``has/<file>`` for each file written.

    The paper tests ``has/<file>`` to omit files that do not exist.
    """
    newest = (
        study.database.sql("SELECT run_id, epoch(started)::BIGINT AS at FROM runs")
        .df()
        .merge(study.runs[["run_id"]], on="run_id")
    )
    found = {**values(study, evidence), **_guards(study), **{f"has/{name}": "yes" for name in present}}
    return f"{NOTICE}% epoch: {newest['at'].max()}\n{COMMANDS}{definitions(found)}\\makeatother\n"


def _guards(study: Study) -> dict[str, str]:
    """Names for statements about all runs, defined only if the statement holds."""
    specs = (
        study.database.sql("SELECT run_id, spec->>'learning_rate' AS rate FROM specs")
        .df()
        .merge(study.runs[["run_id", "task"]], on="run_id")
    )
    tags = (
        study.database.sql("SELECT run_id, value FROM tags WHERE key = 'device'")
        .df()
        .merge(study.runs[["run_id"]], on="run_id")
    )
    holds = {
        "guard/one-learning-rate": len(specs) == len(study.runs)
        and specs.groupby("task")["rate"].nunique().eq(1).all(),
        "guard/cpu-only": len(tags) == len(study.runs) and set(tags["value"]) == {"cpu"},
    }
    return {name: "yes" for name, true in holds.items() if true}


def _texts(study: Study, evidence: Sequence[Evidence]) -> dict[str, str]:
    gaps = [
        f"On {task.task}, there is no table of {name}: {reason}."
        for task in evidence
        for name, reason in task.gaps.items()
    ]
    joint = [name for name in dict.fromkeys(study.runs["config"]) if name not in SINGLE]
    found = {
        "abstract": sentences(headline(evidence)),
        "claims": "\n".join(listed(task.task, [*claims(task), *descriptions(task)]) for task in evidence),
        "answer": sentences([*planned_answer(evidence), *answer(evidence, joint)]),
        "remarks": sentences([*study.notes, *gaps]),
        "table-arms": paper_tables.arms_table(evidence),
        "table-comparisons": paper_tables.comparisons_table(evidence),
        "table-factorial": paper_tables.factorial_table(evidence),
        "table-settings": paper_tables.settings_table(values(study, evidence), evidence),
    }
    ranks = [(task, paper_tables.ranks_table(task)) for task in evidence]
    bits = [(task, paper_tables.bits_table(task)) for task in evidence]
    return found | {
        "appendix-rank-tables": latex_floats.alone_tables(
            "ranks", "mean final rank over the matrices of a layer, with lowest and highest", ranks
        ),
        "appendix-bits-tables": latex_floats.alone_tables(
            "bits", "number format of every matrix, by arm", bits
        ),
    }


def _planners(compared: Frames, folder: Path) -> dict[str, str]:
    return {
        "table-planners": planners_table(compared),
        "planners": sentences(planners_sentences(compared)),
        "figure-planners": "\\par\n".join(
            rf"\includegraphics[width=0.8\linewidth]{{generated/figures/{name}}}"
            for name in draw_planners(compared, folder)
        ),
    }


def _figures(evidence: Sequence[Evidence], folder: Path) -> dict[str, str]:
    found = {
        f"figure-{name}": latex_floats.paired(name, latex_floats.draw(evidence, name, folder))
        for name in latex_floats.PAIRED
    }
    return found | {
        f"appendix-{name}": latex_floats.alone(name, latex_floats.draw(evidence, name, folder))
        for name in latex_floats.ALONE
    }
