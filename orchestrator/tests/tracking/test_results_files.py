"""Results on disk are complete, keep earlier entries, and agree with each other."""

from __future__ import annotations

import csv
import errno
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from bitrank.errors import UserError
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.tracking import results_files
from bitrank.tracking.results_files import check_results, summary_columns, write_results

FIGURES = dict.fromkeys(summary_columns().values(), 1.5)


def test_result_files_of_a_study_agree(tmp_path) -> None:
    specs = [
        make_spec(PROFILES["smoke"], config, "toy_sentences", {"seed": seed})
        for config in ("B-FP", "B-Q4")
        for seed in (0, 1)
    ]
    write_results([(specs[0], FIGURES, "finished")], tmp_path)
    write_results([(spec, FIGURES, "done") for spec in specs[1:]], tmp_path)
    everything = json.loads((tmp_path / "all_results.json").read_text())
    assert [entry["spec_id"] for entry in everything] == [spec.spec_id for spec in specs]
    cell = json.loads((tmp_path / "results_B-FP_toy_sentences.json").read_text())
    assert [run["spec"]["seed"] for run in cell["runs"]] == [0, 1]
    with (tmp_path / "experiment_summary.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [(r["config"], r["seed"], r["state"]) for r in rows] == [
        ("B-FP", "0", "finished"),
        ("B-FP", "1", "done"),
        ("B-Q4", "0", "done"),
        ("B-Q4", "1", "done"),
    ]
    assert {row["accuracy"] for row in rows} == {"1.5"}
    assert [path.name for path in tmp_path.glob(".*")] in ([], [".all_results.lock"])


def test_every_cell_has_a_file_of_its_own_and_the_first_one_the_plain_name(tmp_path: Path) -> None:
    """Plan ``plan`` on ``wiki_articles`` and plan ``plan_wiki`` on ``articles`` would share one name."""
    spec = make_spec(PROFILES["smoke"], "B-FP", "toy_sentences")
    cells = [("plan", "wiki_articles"), ("plan_wiki", "articles")]
    runs = [replace(spec, config=config, task=f"/data/{task}.csv") for config, task in cells]
    for run in [*runs, runs[0]]:
        write_results([(run, FIGURES, "done")], tmp_path)
    found = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("results_*.json")}
    assert {name: (cell["config"], cell["task"]) for name, cell in found.items()} == {
        "results_plan_wiki_articles.json": cells[0],
        "results_plan_wiki_articles-9e2f206e.json": cells[1],
    }


def test_a_long_name_is_cut_to_one_that_files_can_have(tmp_path: Path) -> None:
    spec = make_spec(PROFILES["smoke"], "B-FP", "toy_sentences")
    runs = [replace(spec, task=f"/data/{'文' * 79}{end}.csv") for end in "ab"]
    check_results(tmp_path, runs)
    write_results([(run, FIGURES, "done") for run in runs], tmp_path)
    names = [path.name for path in tmp_path.glob("results_*.json")]
    assert len(names) == 2
    assert all(name.startswith("results_B-FP_文") and 243 < len(name.encode()) <= 246 for name in names)


def test_the_longest_name_is_written_by_the_highest_process_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux counts process ids up to 2²²; the check refused names that could be written."""
    monkeypatch.setattr("os.getpid", lambda: 2**22 - 1)
    spec = replace(make_spec(PROFILES["smoke"], "B-FP", "toy_sentences"), task=f"/data/{'a' * 228}.csv")
    check_results(tmp_path, [spec])
    write_results([(spec, FIGURES, "done")], tmp_path)
    (path,) = tmp_path.glob("results_*.json")
    assert path.name == f"results_B-FP_{'a' * 228}.json" and len(path.name) == 246


def test_a_folder_that_cannot_hold_the_names_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encrypted file systems take names of 143 bytes."""
    write = results_files.write_atomically

    def write_short(path: Path, content: str) -> None:
        if len(path.name.encode()) > 143:
            raise OSError(errno.ENAMETOOLONG, "File name too long", str(path))
        write(path, content)

    monkeypatch.setattr(results_files, "write_atomically", write_short)
    spec = make_spec(PROFILES["smoke"], "B-FP", "toy_sentences")
    check_results(tmp_path, [spec])
    with pytest.raises(UserError, match=r"cannot write results to .*File name too long; give another"):
        check_results(tmp_path, [replace(spec, task=f"/data/{'a' * 140}.csv")])


@pytest.mark.parametrize(
    "content", ["[{}]", "{", '[{"spec_id": "a"', "[3]", "null", '{"a": 1}', "{}", '""', "[" * 100_000]
)
def test_damaged_results_are_refused_and_kept(tmp_path, content: str) -> None:
    path = tmp_path / "all_results.json"
    path.write_text(content)
    spec = make_spec(PROFILES["smoke"], "B-FP", "toy_sentences")
    for act in (lambda: check_results(tmp_path), lambda: write_results([(spec, FIGURES, "done")], tmp_path)):
        with pytest.raises(UserError, match=r"all_results\.json is damaged .* move the file away"):
            act()
    assert path.read_text() == content


def test_matrices_that_write_at_once_keep_each_others_results(tmp_path) -> None:
    specs = [make_spec(PROFILES["smoke"], "B-FP", "toy_sentences", {"seed": seed}) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda spec: write_results([(spec, FIGURES, "done")], tmp_path), specs))
    entries = json.loads((tmp_path / "all_results.json").read_text())
    assert {entry["spec_id"] for entry in entries} == {spec.spec_id for spec in specs}


def test_a_check_at_the_same_time_as_another_command_s_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = results_files.write_atomically

    def write_and_lose(path: Path, content: str) -> None:
        write(path, content)
        path.unlink()  # the other command removes the file that both write

    monkeypatch.setattr(results_files, "write_atomically", write_and_lose)
    check_results(tmp_path)
    assert list(tmp_path.iterdir()) == []
