"""Evidence bundles: report, paper and views equal those of the store, and a damaged bundle is rejected."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from bitrank_analysis import AnalysisError, load_study, open_store, write_bundle
from bitrank_analysis.bundle import MANIFEST
from bitrank_analysis.paper import write_paper
from bitrank_analysis.report import write_report
from studies import add_study


@pytest.fixture
def bundle(maker: Any, tmp_path: Path) -> Path:
    add_study(maker, arms=("B-FP", "B-Q4", "Plan-Q4"), n=40)
    return write_bundle(str(maker.folder), tmp_path / "evidence")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_report_and_paper_from_the_bundle_equal_those_from_the_store(
    bundle: Path, maker: Any, tmp_path: Path
) -> None:
    for write in (write_report, write_paper):
        found = []
        for source in (maker.folder, bundle):
            out = tmp_path / f"{write.__name__}-{source.name}"
            write(str(source), out)
            found.append({name: content for name, content in contents(out).items() if name[-3:] != "pdf"})
        assert found[0].keys() == found[1].keys() and len(found[0]) > 10
        different = [name for name in found[0] if found[0][name] != found[1][name]]
        assert not different


def test_views_of_the_bundle_equal_those_of_the_store(bundle: Path, maker: Any) -> None:
    store, kept = open_store(str(maker.folder)), open_store(str(bundle))
    for view in (
        "final_metrics",
        "metrics",
        "params",
        "tags",
        "ranks",
        "plans",
        "specs",
        "predictions",
        "unread",
    ):
        columns = ", ".join(f'"{name}"' for name in sorted(store.sql(f"SELECT * FROM {view}").columns))
        rows = [
            sorted(map(repr, each.sql(f"SELECT {columns} FROM {view}").fetchall())) for each in (store, kept)
        ]
        assert rows[0] == rows[1], view
    study, again = load_study(store), load_study(kept)
    assert study.runs.equals(again.runs) and study.notes == again.notes
    for run_id in study.runs["run_id"]:
        assert study.predictions(run_id).equals(again.predictions(run_id)), (
            "the columns of this run, in order"
        )


def test_same_results_give_the_same_bytes_and_digest(bundle: Path, maker: Any, tmp_path: Path) -> None:
    again = write_bundle(str(maker.folder), tmp_path / "again")
    assert contents(again) == contents(bundle)
    assert contents(write_bundle(str(maker.folder), bundle)) == contents(again), "a bundle may be replaced"
    maker.sqlite.execute("UPDATE metrics SET value = value + 1 WHERE key = 'eval/loss'")
    maker.sqlite.commit()
    other = write_bundle(str(maker.folder), tmp_path / "other")
    digests = {json.loads((folder / MANIFEST).read_text())["digest"] for folder in (bundle, other)}
    assert len(digests) == 2


def test_parts_of_an_experiment_give_the_bundle_of_the_whole(maker: Any, tmp_path: Path) -> None:
    """Also when a run is in two parts, and the experiment has another id in each store."""
    add_study(maker, arms=("B-FP", "B-Q4"), n=40, seeds=3)
    whole = contents(write_bundle(str(maker.folder), tmp_path / "evidence"))
    parts = []
    for number, half in enumerate(("seed < '2'", "seed > '0'")):
        part = tmp_path / f"part-{number}"
        shutil.copytree(maker.folder, part, ignore=shutil.ignore_patterns("evidence", "part-*"))
        with sqlite3.connect(part / "mlflow.db") as database:
            chosen = f"SELECT run_uuid FROM tags WHERE key = 'seed' AND {half.replace('seed', 'value')}"
            for table in ("metrics", "params", "tags", "runs"):
                database.execute(f"DELETE FROM {table} WHERE run_uuid NOT IN ({chosen})")
            if number:
                database.execute("UPDATE experiments SET experiment_id = experiment_id + 7")
                database.execute("UPDATE runs SET experiment_id = experiment_id + 7")
        parts.append(str(part))
    assert contents(write_bundle(parts, tmp_path / "joined")) == whole
    bundles = [str(write_bundle(part, tmp_path / f"bundle-{number}")) for number, part in enumerate(parts)]
    assert contents(write_bundle(bundles, tmp_path / "again")) == whole


def test_of_two_versions_of_a_run_the_finished_one_is_kept_in_any_order(maker: Any, tmp_path: Path) -> None:
    """The older copy was made while one run was running; a third copy has no files."""
    running = maker.classifier("B-FP", [True, False], status="RUNNING", metrics={"eval/acc": 0.1})
    maker.classifier("B-Q4", [True, False])
    shutil.copytree(maker.folder, tmp_path / "old", ignore=shutil.ignore_patterns("old"))
    maker.sqlite.execute("UPDATE runs SET status = 'FINISHED', end_time = 9000 WHERE run_uuid = ?", [running])
    maker.sqlite.execute("UPDATE metrics SET value = 0.5 WHERE run_uuid = ?", [running])
    maker.sqlite.commit()
    (tmp_path / "bare").mkdir()
    shutil.copy(maker.folder / "mlflow.db", tmp_path / "bare")
    moved = f"REPLACE(artifact_uri, '{maker.folder}', '{tmp_path / 'bare'}')"
    with sqlite3.connect(tmp_path / "bare" / "mlflow.db") as database:
        database.execute(f"UPDATE runs SET artifact_uri = {moved}")
    alone = contents(write_bundle(str(maker.folder), tmp_path / "alone"))
    places = [str(tmp_path / "old"), str(maker.folder), str(tmp_path / "bare")]
    for number, order in enumerate((places, places[::-1], [places[1], places[0], places[2]])):
        notices: list[str] = []
        joined = write_bundle(order, tmp_path / f"joined-{number}", on_notice=notices.append)
        assert contents(joined) == alone
        assert notices == [
            "runs with different versions in these stores: 2, such as B-FP movies s0; the finished version "
            "is kept, or else the one that ended last"
        ]
    status = "SELECT status FROM runs WHERE run_name LIKE 'B-FP%'"
    assert open_store(str(joined)).sql(status).fetchall() == [("FINISHED",)]


def test_of_two_unfinished_versions_the_one_that_ended_last_is_kept(maker: Any, tmp_path: Path) -> None:
    run = maker.classifier("B-FP", [True, False], status="KILLED")
    maker.classifier("B-Q4", [True, False])
    shutil.copytree(maker.folder, tmp_path / "later", ignore=shutil.ignore_patterns("later"))
    with sqlite3.connect(tmp_path / "later" / "mlflow.db") as database:
        database.execute("UPDATE runs SET status = 'FAILED', end_time = 9000 WHERE run_uuid = ?", [run])
    for order in ([maker.folder, tmp_path / "later"], [tmp_path / "later", maker.folder]):
        joined = write_bundle([str(place) for place in order], tmp_path / "joined")
        status = "SELECT status FROM runs WHERE run_name LIKE 'B-FP%'"
        assert open_store(str(joined)).sql(status).fetchall() == [("FAILED",)]


def test_parts_of_different_experiments_are_refused(bundle: Path, maker: Any, tmp_path: Path) -> None:
    maker.sqlite.execute("UPDATE experiments SET name = 'bitrank-other'")
    maker.sqlite.commit()
    with pytest.raises(AnalysisError, match=r"expected parts of one experiment, got .*bitrank-other in "):
        write_bundle([str(bundle), str(maker.folder)], tmp_path / "joined")


def test_bundle_has_no_paths_users_or_passwords_and_keeps_other_text(maker: Any, tmp_path: Path) -> None:
    text = "<script>alert(1)</script> 'quoted' \"twice\" \n=1+1 ü"
    spec = {"model": "/home/someone/models/mine", "plan": "/home/someone/exact-4bits.json", "seed": 0}
    rows = {"id": ["a'b", text], "label": [0, 1], "prediction": [0, 0], "loss": [0.1, 0.2], "tokens": [1, 2]}
    maker.run(
        "B-FP",
        metrics={"eval/acc": 0.5},
        predictions=rows | {"text": [text, "="]},
        params={"model": "/home/someone/models/mine", "data": "postgresql://me:secret@host/x"},
        tags={"mlflow.user": "someone", "note": text},
        files={"spec.json": spec, "continuations.json": [{"prompt": text, "continuation": text}]},
    )
    bundle = write_bundle(str(maker.folder), tmp_path / "evidence")
    kept = open_store(str(bundle))
    everything = repr(
        [kept.sql(f"SELECT * FROM {view}").fetchall() for view in ("wide", "specs", "predictions")]
    )
    for secret in ("someone", "secret", str(tmp_path)):
        assert secret not in everything
    assert kept.sql("SELECT spec->>'model' FROM specs").fetchall() == [("…/mine",)]
    assert kept.sql("SELECT value FROM tags WHERE key = 'note'").fetchall() == [(text,)]
    assert kept.sql("SELECT id, text FROM predictions ORDER BY tokens").fetchall() == [
        ("a'b", text),
        (text, "="),
    ]
    page = (tmp_path / "report" / "report.html") if write_report(str(bundle), tmp_path / "report") else None
    assert page is not None and "<script>alert" not in page.read_text()


def test_reasons_in_a_bundle_have_no_folders(maker: Any, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True, False])
    failure = "/home/alice/acme/reviews.csv: row 3 has no label; see ~/acme/notes.md"
    run_id = maker.run("B-Q4", status="FAILED", tags={"failure": failure})
    moved = "UPDATE runs SET artifact_uri = 'sftp://alice:pw@host/home/alice/artifacts' WHERE run_uuid = ?"
    maker.sqlite.execute(moved, [run_id])
    maker.sqlite.commit()
    kept = open_store(str(write_bundle(str(maker.folder), tmp_path / "evidence")))
    assert kept.sql("SELECT value FROM tags WHERE key = 'failure'").fetchall() == [
        ("…/reviews.csv: row 3 has no label; see …/notes.md",)
    ]
    assert kept.sql("SELECT reason FROM unread").fetchall() == [
        ("its artifacts are not on this machine: …/artifacts",)
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "runs.parquet").write_bytes(b"PAR1"), "is not the file that the bundle"),
        (lambda folder: (folder / "tags.parquet").unlink(), "got no file"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "is no manifest of a bundle"),
        (lambda folder: edit(folder, version=2), "has format version 2"),
        (lambda folder: edit(folder, digest="0"), "was changed after"),
        (lambda folder: edit(folder, files={"../x.parquet": "0"}), "names a file outside"),
    ],
)
def test_damaged_bundle_is_rejected(maker: Any, tmp_path: Path, damage: Any, message: str) -> None:
    maker.classifier("B-FP", [True, False])
    bundle = write_bundle(str(maker.folder), tmp_path / "evidence")
    damage(bundle)
    with pytest.raises(AnalysisError, match=message):
        open_store(str(bundle))


def edit(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | changes))


def test_folder_with_other_files_is_not_overwritten(maker: Any, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True, False])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(AnalysisError, match="give an empty or new folder"):
        write_bundle(str(maker.folder), tmp_path / "mine")


def test_a_bundle_stays_until_the_new_one_is_complete(
    maker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker.classifier("B-FP", [True, False])
    bundle = write_bundle(str(maker.folder), tmp_path / "evidence")
    before = contents(bundle)
    written: list[Path] = []

    def full(path: Path, rows: Any) -> str:
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        path.write_bytes(b"new")
        return ""

    monkeypatch.setattr("bitrank_analysis.make_bundle._write", full)
    with pytest.raises(AnalysisError, match="No space left on device"):
        write_bundle(str(maker.folder), bundle)
    assert contents(bundle) == before and len(load_study(open_store(str(bundle))).runs) == 1


def test_a_bundle_may_be_joined_into_the_folder_of_one_of_its_parts(maker: Any, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True, False])
    part = write_bundle(str(maker.folder), tmp_path / "part1")
    maker.classifier("B-Q4", [True, False])
    whole = contents(write_bundle([str(part), str(maker.folder)], tmp_path / "whole"))
    assert contents(write_bundle([str(part), str(maker.folder)], part)) == whole
    assert set(load_study(open_store(str(part))).runs["config"]) == {"B-FP", "B-Q4"}


def test_parquet_files_of_somebody_else_are_not_removed(maker: Any, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True, False])
    bundle = write_bundle(str(maker.folder), tmp_path / "evidence")
    (bundle / "mine.parquet").write_bytes(b"mine")
    before = contents(bundle)
    with pytest.raises(AnalysisError, match=r"got mine\.parquet, which evidence\.json does not name; move"):
        write_bundle(str(maker.folder), bundle)
    assert contents(bundle) == before
