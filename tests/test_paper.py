"""The paper: constants equal those of the code, checks find faults, and it builds from a study."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from bitrank.spec.configs import CONFIGS
from bitrank_adapters import AdaLora
from bitrank_analysis.paper import write_paper
from bitrank_quant import parse_format
from studies import add_study

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT / "paper"
PROGRAMS = ("pdflatex", "bibtex", "latexmk", "pdffonts", "aspell")
LACKING = [program for program in PROGRAMS if shutil.which(program) is None]
needs_tex = pytest.mark.skipif(bool(LACKING), reason=f"needs TeX; missing: {', '.join(LACKING)}")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check = load(ROOT / "tools/check_paper.py")


def test_constants_of_the_paper_equal_those_of_the_code() -> None:
    constants = dict(re.findall(r"\\newcommand\{\\(\w+)\}\{(.*?)\}", (PAPER / "constants.tex").read_text()))
    from bitrank_data import embedded

    schedule, weights = AdaLora(), 768 * 768
    assert constants == {
        "AdaWarm": rf"{100 * schedule.warm:.0f}\,\%",
        "AdaFinal": rf"{100 * schedule.final:.0f}\,\%",
        "AdaEvery": str(schedule.every),
        "AdaOrthogonality": str(schedule.orthogonality),
        "NfBlock": str(parse_format("nf4-dq").block),  # type: ignore[attr-defined]
        "AffineBlock": str(parse_format("int5-g64").block),  # type: ignore[attr-defined]
        "PlanRank": str(min(CONFIGS["Plan-Q4"].ranks)),  # type: ignore[union-attr]
        "NfBits": f"{8 * parse_format('nf4-dq').nbytes((768, 768)) / weights:.2f}",
        "IntBits": f"{8 * parse_format('int8').nbytes((768, 768)) / weights:.2f}",
        "MovieTrain": "8,070",  # held by packages/data/tests/test_assets.py
        "MovieValidation": "1,000",
        "MovieTest": "1,000",
        "MovieNeutral": str(embedded._NEUTRAL),
        "WikiValidation": str(embedded._VALIDATION_ARTICLES),
        "WikiTest": str(embedded._TEST_ARTICLES),
    }


def test_every_citation_has_an_entry() -> None:
    entries = re.findall(r"@\w+\{(\w+),", (PAPER / "references.bib").read_text())
    cited = {
        key.strip()
        for keys in re.findall(r"\\cite[tp]?\{(.*?)\}", (PAPER / "main.tex").read_text())
        for key in keys.split(",")
    }
    assert len(entries) == len(set(entries)) and cited == set(entries)


@pytest.mark.parametrize(
    ("typed", "numbers"),
    [
        ("Joint-2 reaches 84.1 on it.", ["84.1"]),
        (r"It saves 35\,\% or 12\% of the bytes.", ["35", r"12\%"]),
        ("a change of -2.9 points", ["2.9"]),
        (r"accuracy $83.3$ here", ["83.3"]),
        (r"\val{movies/B-FP/n} runs of Joint-1 in bf16, GPT-2, SmolLM2-135M, 4-bit $2 \times 2$ % 99.9", []),
        (r"\setlength{\tabcolsep}{4.5pt}\label{tab:3}\ref{fig:12}\begin{tabular}{lll}", []),
    ],
)
def test_hand_typed_numbers_are_found(typed: str, numbers: list[str]) -> None:
    assert [
        re.search(r"hand: '(.*?)' in", fault)[1].replace(r"\\", "\\") for fault in check.typed_numbers(typed)
    ] == numbers  # type: ignore[index]


def test_main_tex_has_no_hand_typed_number() -> None:
    body = (PAPER / "main.tex").read_text().split(r"\begin{document}")[1]
    assert check.typed_numbers(body) == []
    assert len(check.typed_numbers(body.replace(r"\val{study/runs}", "36"))) == 1


def test_unreferenced_figures_and_broken_references_are_found() -> None:
    text = r"\label{fig:a}\label{tab:b}\label{sec:c}\ref{tab:b}\ref{fig:d}"
    assert check.unreferenced(text) == ["no sentence refers to fig:a", r"\ref{fig:d} has no label"]


def test_faults_in_the_log_are_found() -> None:
    log = (
        "ok\nLaTeX Warning: Reference `x' undefined\nOverfull \\hbox (4.9pt too wide)\n"
        "Overfull \\hbox (12.3pt too wide) in\n! Bad\n"
    )
    assert [fault[:12] for fault in check.log_faults(log)] == ["LaTeX Warnin", "! Bad", "Overfull \\hb"]


def test_fonts_without_embedding_are_found() -> None:
    head = "name type encoding emb sub uni object ID\n---- ---- ---- --- --- --- ----\n"
    good = "ABCDEF+LMRoman10-Regular             Type 1            Custom           yes yes no      10  0\n"
    bare = "Helvetica                            Type 1            WinAnsi          no  no  no      12  0\n"
    bitmap = "F35                                  Type 3            Custom           yes no  no      14  0\n"
    assert check.font_faults(head + good) == []
    assert [fault.split()[-1] for fault in check.font_faults(head + good + bare + bitmap)] == [
        "Helvetica",
        "F35",
    ]
    assert check.font_faults(head) == ["pdffonts lists no font"]


def test_missing_tex_is_reported_with_the_packages_to_install(tmp_path: Path) -> None:
    for program in ("sh", "dirname", "cat", "python3"):
        (tmp_path / program).symlink_to(shutil.which(program) or sys.executable)
    done = subprocess.run(
        [ROOT / "tools/build_paper.sh", PAPER],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "missing pdflatex bibtex latexmk pdffonts aspell." in done.stderr
    assert (
        "apt-get install --no-install-recommends texlive-latex-recommended" in done.stderr
        and "docker run" in done.stderr
    )


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that makes a folder with the paper and its inputs for a study of ``arms``."""

    def make(arms: tuple[str, ...], seeds: int) -> Path:
        maker = load(ROOT / "packages/analysis/tests/conftest.py").StoreMaker(tmp_path)
        for run_id in add_study(maker, arms=arms, seeds=seeds, n=60):
            folder = next((tmp_path / "artifacts").glob(f"*/{run_id}/artifacts"))
            (folder / "spec.json").write_text(json.dumps(_spec(run_id, maker)))
        folder = tmp_path / "paper"
        shutil.copytree(PAPER, folder, ignore=shutil.ignore_patterns("generated", "main.[!t]*", "build.txt"))
        write_paper(str(tmp_path), folder / "generated")
        return folder

    return make


def _spec(run_id: str, maker: Any) -> dict[str, Any]:
    from bitrank.spec.configs import CONFIGS

    (config,) = maker.sqlite.execute(
        "SELECT value FROM tags WHERE run_uuid = ? AND key = 'config'", [run_id]
    ).fetchone()
    return {"learning_rate": 0.002, "arm": CONFIGS[config].as_data()}


@needs_tex
@pytest.mark.parametrize(
    ("arms", "seeds"),
    [
        (("B-FP", "B-Q4", "B-Ada", "Joint-1", "Joint-2", "Joint-3", "Plan-Q4"), 2),
        pytest.param(("B-FP", "Joint-3"), 1, marks=pytest.mark.slow),
        (("B-FP",), 1),
    ],
)
def test_paper_builds_passes_its_checks_and_is_packed(
    study: Callable[..., Path], tmp_path: Path, arms: tuple[str, ...], seeds: int
) -> None:
    folder = study(arms, seeds)
    built = subprocess.run(
        [ROOT / "tools/build_paper.sh", folder], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    packed = subprocess.run(
        [ROOT / "tools/arxiv.sh", folder, tmp_path / "a.tar.gz"], capture_output=True, text=True, check=False
    )
    assert packed.returncode == 0 and "built from itself alone" in packed.stdout, packed.stderr
    macros = folder / "generated/macros.tex"
    macros.write_text(
        "".join(line for line in macros.read_text().splitlines(keepends=True) if "{study/runs}" not in line)
    )
    stopped = subprocess.run(
        [ROOT / "tools/build_paper.sh", folder],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ},
    )
    assert stopped.returncode == 1 and "the store gave no value `study/runs'" in stopped.stderr.replace(
        "\n", ""
    )


def pack(folder: Path, out: Path, pages: str) -> subprocess.CompletedProcess[str]:
    """Run ``arxiv.sh`` with stand-ins: TeX that makes nothing, and a tar without GNU's options (macOS)."""
    programs = {
        "pdflatex": "exit 0",
        "pdfinfo": f'case "$1" in {folder}/*) echo "Pages: 2";; *) echo "Pages: {pages}";; esac',
        "tar": f'case "$*" in *--*) exit 64;; esac; exec {shutil.which("tar")} "$@"',
    }
    bin_folder = folder.parent / "bin"
    bin_folder.mkdir(exist_ok=True)
    for name, text in programs.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_folder / name).chmod(0o755)
    return subprocess.run(
        [ROOT / "tools/arxiv.sh", folder, out],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"},
    )


def test_arxiv_archive_is_the_same_at_any_time_and_needs_no_gnu_tar(tmp_path: Path) -> None:
    folder = tmp_path / "paper"
    (folder / "generated").mkdir(parents=True)
    for name in ("main.tex", "main.bbl", "generated/b.tex", "generated/a.tex", "generated/macros.tex"):
        (folder / name).write_text(f"% epoch: 0\n{name}\n")
    (folder / "main.fls").write_text("INPUT ./generated/b.tex\nINPUT generated/a.tex\nINPUT main.tex\n")
    archives = []
    for number, day in enumerate((86400, 172800)):
        os.utime(folder / "main.tex", (day, day))
        archives.append(tmp_path / f"{number}.tar.gz")
        done = pack(folder, archives[-1], pages="2")
        assert done.returncode == 0, done.stderr
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with tarfile.open(archives[0]) as archive:
        entries = archive.getmembers()
    assert [entry.name for entry in entries if entry.isfile()] == [
        "./generated/a.tex",
        "./generated/b.tex",
        "./main.bbl",
        "./main.tex",
    ]
    assert {(entry.mtime, entry.uid, entry.gid, entry.uname) for entry in entries} == {(0, 0, 0, "")}


def test_an_archive_that_fails_its_check_is_not_left(tmp_path: Path) -> None:
    folder, out = tmp_path / "paper", tmp_path / "a.tar.gz"
    (folder / "generated").mkdir(parents=True)
    for name in ("main.tex", "main.bbl", "generated/macros.tex"):
        (folder / name).write_text("% epoch: 0\n")
    (folder / "main.fls").write_text("INPUT main.tex\n")
    out.write_text("of an earlier paper")
    done = pack(folder, out, pages="1")
    assert done.returncode == 1 and "another number of pages" in done.stderr and not out.exists()
