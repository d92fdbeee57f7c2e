"""From a store to the paper's inputs: files, values, omissions and errors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from bitrank_analysis import AnalysisError, load_study, open_store
from bitrank_analysis.evidence import gather
from bitrank_analysis.paper import write_paper
from bitrank_analysis.paper.latex import NOTICE
from bitrank_analysis.paper.selection import select
from bitrank_analysis.paper.tables import bits_table
from bitrank_analysis.paper.values import flattened, spelled, values
from studies import add_study


def names(folder: Path) -> dict[str, str]:
    return dict(re.findall(r"\\bitrank@def\{(.*?)\}\{(.*)\}\n", (folder / "macros.tex").read_text()))


def add_spec(maker: Any, run_id: str, **spec: Any) -> None:
    folder = next((maker.folder / "artifacts").glob(f"*/{run_id}/artifacts"))
    (folder / "spec.json").write_text(json.dumps(spec))


def test_full_study_defines_all_its_values(maker: Any, tmp_path: Path) -> None:
    for run_id in add_study(maker, tasks=("movies",), n=60):
        rank = {"rule": "FixedRank", "rank": 8}
        add_spec(
            maker,
            run_id,
            learning_rate=0.002,
            weight_decay=0.0,
            data="/somewhere",
            fused=False,
            arm={"rank": rank},
        )
    folder = write_paper(str(tmp_path), tmp_path / "out")
    found = names(folder)
    runs = load_study(open_store(str(tmp_path))).runs.set_index("config")
    for name in runs.index:
        assert found[f"movies/{name}/quality"] == f"{100 * runs.loc[name, 'quality']:.1f}\\,\\%"
        assert found[f"movies/{name}/model_mib"] == f"{runs.loc[name, 'model_mib']:.1f}"
    assert (found["study/arms"], found["study/tasks"], found["study/runs"], found["task/movies/n"]) == (
        "six",
        "one",
        "6",
        "60",
    )
    assert found["spec/movies/learning_rate"] == "0.002" and found["spec/movies/weight_decay"] == "0"
    assert found["arm/Joint-3/rank/rank"] == "8"
    assert "guard/one-learning-rate" in found and "study/one-seeds" in found and "guard/cpu-only" not in found
    assert not any("somewhere" in text for text in found.values())
    written = {path.stem for path in folder.glob("*.tex")} - {"macros"}
    assert {f"has/{name}" for name in written} == {name for name in found if name.startswith("has/")}
    assert {
        "abstract",
        "claims",
        "answer",
        "table-arms",
        "table-comparisons",
        "table-factorial",
        "figure-forest",
        "appendix-rank-map",
    } <= written
    for path in folder.glob("*.tex"):
        for figure in re.findall(r"\\includegraphics\[.*?\]\{generated/(.*?)\}", path.read_text()):
            assert (folder / figure).read_bytes().startswith(b"%PDF")
    assert (folder / "tables/comparisons-movies.csv").read_text().startswith("task,metric,candidate,baseline")


@pytest.mark.slow
def test_equal_stores_give_equal_text(maker: Any, tmp_path: Path) -> None:
    add_study(maker, arms=("B-FP", "B-Q4"), tasks=("movies",), n=20)
    first, second = (write_paper(str(tmp_path), tmp_path / name) for name in ("a", "b"))
    texts = [{path.name: path.read_text() for path in folder.glob("*.tex")} for folder in (first, second)]
    assert texts[0] == texts[1] and len(texts[0]) > 8


def test_missing_arm_defines_no_value_and_leaves_no_empty_file(maker: Any, tmp_path: Path) -> None:
    add_study(maker, arms=("B-FP", "B-Q4"), tasks=("movies",), n=60)
    folder = write_paper(str(tmp_path), tmp_path / "out")
    found = names(folder)
    assert "arm/B-Q4" in found and not any("Joint" in name or "factorial" in name for name in found)
    assert not (folder / "table-factorial.tex").exists() and not (folder / "answer.tex").exists()
    others = [path for path in folder.glob("*.tex") if path.name != "table-hypotheses.tex"]
    assert not any("Joint" in path.read_text() for path in others)
    hypotheses = (folder / "table-hypotheses.tex").read_text()
    assert "not tested here: no finished run of Joint-2" in hypotheses


def test_arm_outside_the_study_is_excluded_and_noted(maker: Any, tmp_path: Path) -> None:
    def notes_and_values() -> tuple[tuple[str, ...], dict[str, str]]:
        study = select(load_study(open_store(str(tmp_path))), ("B-FP", "B-Q4"))
        return study.notes, values(study, [gather(study, "movies")])

    add_study(maker, arms=("B-FP", "B-Q4"), tasks=("movies",), n=60)
    notes, values_before = notes_and_values()
    add_study(maker, arms=("Deep-8",), tasks=("movies",), n=60)
    assert notes_and_values() == (
        ("The store also holds runs of Deep-8, which are no arms of this study and enter nowhere.",),
        values_before,
    )
    assert notes == ()


def test_remarks_list_missing_duplicate_and_outdated_runs(maker: Any, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True] * 9 + [False])
    maker.classifier("B-FP", [True] * 8 + [False] * 2, tags={"code": "c2"})
    maker.classifier("B-FP", [True] * 10, seed=1)
    maker.run("B-Q4", seed=0, status="FAILED", tags={"failure": "out of memory"})
    chosen = select(load_study(open_store(str(tmp_path))), ("B-FP", "B-Q4"))
    assert chosen.notes == (
        "Without a result: B-Q4 on movies, seed 0 (failed: out of memory); B-Q4 on movies, seed 1 (absent: "
        "it was not run).",
        "1 further finished run gave way to another of the same arm, task and seed: the one with the usual "
        "settings or, among equals, the "
        "newest counts.",
        "Made by other code than the newest runs: B-FP movies s0.",
    )


def test_missing_front_is_remarked_and_not_claimed(maker: Any, tmp_path: Path) -> None:
    maker.run(
        "B-FP", metrics={"eval/acc": 0.5, "model/mib": 9.0, "mem/peak_mib": 90.0}, predictions=_answers("a")
    )
    maker.run("B-Q4", metrics={"eval/acc": 0.5, "mem/peak_mib": 90.0}, predictions=_answers("a"))
    folder = write_paper(str(tmp_path), tmp_path / "out")
    assert (folder / "remarks.tex").read_text().splitlines()[1:] == [
        "On movies, there is no table of front of stored size: stored\\_mib was not recorded for B-FP, B-Q4; "
        "run them again."
    ]
    assert (
        not (folder / "figure-quality-bytes.tex").exists()
        and "front" not in (folder / "claims.tex").read_text()
    )


def _answers(name: str) -> dict[str, list[Any]]:
    return {
        "id": [f"{name}{i}" for i in range(8)],
        "label": [0, 1] * 4,
        "prediction": [0, 1, 0, 1, 0, 1, 0, 0],
        "loss": [0.5] * 8,
        "tokens": [9] * 8,
    }


def test_settings_that_differ_between_runs_define_no_value(maker: Any, tmp_path: Path) -> None:
    for name, rate in (("B-FP", 0.001), ("B-Q4", 0.002)):
        add_spec(maker, maker.classifier(name, [True, False] * 10), learning_rate=rate, clip=1.0)
    folder = write_paper(str(tmp_path), tmp_path / "out")
    found = names(folder)
    assert found["spec/movies/clip"] == "1"
    assert "spec/movies/learning_rate" not in found and "guard/one-learning-rate" not in found


def test_build_replaces_only_its_own_files(maker: Any, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True, False] * 10)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old.tex").write_text(f"{NOTICE}old")
    write_paper(str(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out/old.tex").exists()
    (tmp_path / "out/mine.tex").write_text("mine")
    with pytest.raises(AnalysisError, match=r"mine\.tex was not written by `bitrank paper`; move it away"):
        write_paper(str(tmp_path), tmp_path / "out")
    assert (tmp_path / "out/mine.tex").read_text() == "mine"


def test_study_without_the_arms_raises(maker: Any, tmp_path: Path) -> None:
    maker.classifier("Deep-8", [True, False] * 10)
    with pytest.raises(
        AnalysisError, match=r"expected finished runs of B-FP, B-Q4, .* in bitrank-test, got none of them"
    ):
        write_paper(str(tmp_path), tmp_path / "out")


def test_unwritable_folder_raises(maker: Any, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True, False] * 10)
    (tmp_path / "file").write_text("")
    with pytest.raises(AnalysisError, match="expected a folder to write the paper's inputs to"):
        write_paper(str(tmp_path), tmp_path / "file")


def test_consecutive_layers_of_one_pattern_share_a_row(maker: Any, tmp_path: Path) -> None:
    layers = {
        f"m.layers.{layer}.self_attn.q_proj": "int8" if layer in (0, 3) else "nf4" for layer in range(4)
    }
    precision = {"m.embed_tokens": "bf16", "m.layers.0.mlp.up_proj": "nf4", **layers}
    plan = {"precision": precision, "ranks": {}, "matrices": [], "applied": {}}
    maker.classifier("B-FP", [True, False] * 10, files={"plan.json": plan})
    rows = bits_table(gather(load_study(open_store(str(tmp_path))), "movies")).splitlines()[5:-2]
    assert rows == [
        r"embed\_tokens & bf16 \\",
        r"layer 0 & int8: q; nf4: up \\",
        r"layers 1\textendash{}2 & nf4 \\",
        r"layer 3 & int8 \\",
    ]


def test_flattened_omits_empty_values_and_paths() -> None:
    nested = {"a": {"b": 8, "c": 0.1, "d": None}, "e": 0.0, "f": False, "g": True, "data": "/x", "plan": "/y"}
    assert flattened(nested) == {"a/b": "8", "a/c": "0.1", "e": "0", "g": "True"}
    assert (spelled(0), spelled(6), spelled(12)) == ("no", "six", "12")


def test_unmeasured_value_is_not_defined(maker: Any, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True, False] * 10, metrics={"eval/acc": 0.5})
    study = load_study(open_store(str(tmp_path)))
    found = values(study, [gather(study, "movies")])
    assert found["movies/B-FP/quality"] == "50.0 %"
    assert not {"movies/B-FP/model_mib", "movies/B-FP/zero", "movies/B-FP/peak_mib"} & set(found)
