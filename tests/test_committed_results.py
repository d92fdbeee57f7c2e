"""The tables of docs/results follow from the bundles and plans that are committed beside them."""

from __future__ import annotations

import json
import math
import re
from itertools import groupby
from pathlib import Path

import pandas as pd
import pytest
from bitrank.planning.learning_rates import choose_rates, grid_specs, missing
from bitrank.spec.run_spec import RunSpec
from bitrank.tracking.run_state import StoredRun
from bitrank_analysis import write_bundle
from bitrank_analysis.published import BYTES_TOLERANCE
from bitrank_analysis.report.planners import planners_report

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
# Folder of a study, its planning file, and what its tables are called after the task.
STUDIES = (
    ("allocators", "planning.json", ""),
    ("allocators/sentences", "planning.json", ""),
    ("allocators/gptq", "planning.json", ""),
    ("allocators/lowest-rank", "planning.json", ""),
    ("systems", "planning-3.5bits.json", "-3.5bits"),
    ("systems/gptq", "planning.json", ""),
    ("systems/gora", "planning.json", ""),
)
# Studies whose reference ran in another one.
WITH = {"systems/gora": "systems"}


@pytest.mark.parametrize(("folder", "planning", "ending"), STUDIES)
def test_a_report_made_from_the_bundle_has_the_committed_tables(
    folder: str, planning: str, ending: str, tmp_path: Path
) -> None:
    study, bundle = RESULTS / folder, RESULTS / folder / "evidence"
    if folder in WITH:
        parts = [str(bundle), str(RESULTS / WITH[folder] / "evidence")]
        bundle = tmp_path / "joined"
        write_bundle(parts, bundle)
    planners_report(str(bundle), None, [study / planning], tmp_path)
    tasks = {row["task"] for row in json.loads((study / planning).read_text())["plans"]}
    for task in sorted(tasks):
        found, committed = tmp_path / f"{task}.csv", study / f"{task}{ending}.csv"
        pd.testing.assert_frame_equal(pd.read_csv(found), pd.read_csv(committed), rtol=1e-6)


@pytest.fixture(scope="module")
def claims(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the runs at the bytes of ``B-Q4`` and at 3.5 bits."""
    folder = tmp_path_factory.mktemp("claims")
    systems = RESULTS / "systems"
    write_bundle([str(systems / "claims" / "evidence"), str(systems / "evidence")], folder / "joined")
    plans = [systems / "claims" / "planning.json", systems / "planning-3.5bits.json"]
    planners_report(str(folder / "joined"), None, plans, folder / "report")
    return folder / "report"


@pytest.mark.parametrize("task", ("movie_sentences", "wiki_articles"))
def test_findings_on_published_claims_follow_from_the_bundles(task: str, claims: Path) -> None:
    name = f"published-{task}.csv"
    found, committed = pd.read_csv(claims / name), pd.read_csv(RESULTS / "systems" / name)
    pd.testing.assert_frame_equal(found, committed, rtol=1e-6)


@pytest.mark.parametrize("task", ("movie_sentences", "wiki_articles"))
def test_a_published_claim_is_tested_only_at_equal_bytes(task: str) -> None:
    claims = pd.read_csv(RESULTS / "systems" / f"published-{task}.csv")
    tables = [RESULTS / "systems" / f"{task}{ending}.csv" for ending in ("", "-3.5bits")]
    arms = pd.concat([pd.read_csv(table) for table in tables])
    stored = arms.sort_values("seeds").groupby("config")["stored_bytes"].last()
    tested = claims[(claims["statistic"] == "difference") & claims["value"].notna()]
    assert len(tested)
    for row in tested.itertuples():
        assert stored[row.candidate] == pytest.approx(stored[row.baseline], rel=BYTES_TOLERANCE), row.claim


def test_the_readme_gives_the_exact_planner_its_own_perplexities() -> None:
    arms = pd.read_csv(RESULTS / "allocators" / "wiki_articles.csv").set_index("config")["quality"]
    text = " ".join((ROOT / "README.md").read_text().split())
    stated = re.search(
        r"`exact` has ([\d.]+) .*?uniform pair ([\d.]+); at 4.25 bits ([\d.]+) and ([\d.]+)", text
    )
    assert stated is not None
    names = ("exact-3.5bits", "uniform-3.5bits", "exact-4.25bits", "uniform-4.25bits")
    assert stated.groups() == tuple(f"{arms[name]:.1f}" for name in names)


def test_a_walk_over_the_rates_of_every_whole_grid_ends_at_its_best_rate_with_a_third_fewer_runs() -> None:
    def cell(run: dict[str, object]) -> tuple[object, ...]:
        return run["task"], run["policy"], run["rank"], run["seed"]

    rows = json.loads((RESULTS / "rank-rates" / "rank-rates.json").read_text())["runs"]
    tried, trained = 0, 0
    for _, grouped in groupby(sorted(rows, key=cell), cell):
        whole = sorted(grouped, key=lambda run: run["rate"])
        grid = grid_specs([RunSpec("B-Q4", "t", "m", learning_rate=1.0)], [run["rate"] for run in whole])
        losses = [math.nan if run["val_loss"] is None else run["val_loss"] for run in whole]
        ended = {
            spec.spec_id: StoredRun("id", "FINISHED", {}, {"val/loss": loss})
            for spec, loss in zip(grid, losses, strict=True)
        }
        runs: dict[str, StoredRun] = {}
        while due := missing(grid, runs, walks=True):
            runs |= {spec.spec_id: ended[spec.spec_id] for spec in due}
        (walked,) = choose_rates(grid, runs, walks=True).values()
        (all_tried,) = choose_rates(grid, ended).values()
        assert walked.rate == all_tried.rate
        tried, trained = tried + len(runs), trained + len(whole)
    assert (tried, trained) == (96, 140)


def test_no_rate_beside_those_of_the_allocators_on_articles_has_a_smaller_loss() -> None:
    folder = RESULTS / "allocators"
    chosen = {
        row["config"]: row["learning_rate"]
        for row in json.loads((folder / "planning.json").read_text())["plans"]
    }
    known: dict[str, dict[float, float]] = {name: {} for name in chosen}
    for name in ("rates.json", "rates-beyond.json"):
        for row in json.loads((folder / name).read_text()):
            known[row["config"]] |= {float(rate): loss for rate, loss in row["losses"].items()}
    assert len(known) == 24
    for config, losses in known.items():
        assert len(losses) > 1 and min(losses, key=losses.__getitem__) == chosen[config], config
