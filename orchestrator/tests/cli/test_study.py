"""``bitrank study``: what it refuses before measuring, and what it prints at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bitrank.cli import study, study_rates
from bitrank.cli.main import _parser, main
from bitrank.cli.matrix import SMOKE_NOTICE
from bitrank.cli.study_checks import check_study
from bitrank.errors import UserError
from bitrank.execution.attempt import Job
from bitrank.execution.matrix import Options
from bitrank.execution.options import Execution
from bitrank.planning.learning_rates import grid_specs
from bitrank.planning.planner_studies import STUDIES, find_study
from bitrank.planning.study_plans import StudyRuns
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec
from bitrank.tracking.run_state import State, StoredRun

STUDY = ("study", "eight-bits", "--profile", "smoke", "--tasks", "toy_sentences")
SPEC = RunSpec(
    "exact-7bits", "toy_sentences", "tiny-bert", steps=10, learning_rate=1e-3, profile="eight-bits"
)
LEFT_OUT = {"arm": "exact", "budget": "7bits", "task": "toy_sentences", "reason": "no plan: too small"}


def job(spec: RunSpec, status: str) -> Job:
    return Job(spec, Path("runs/work") / spec.spec_id, State("new"), status, "")


@pytest.fixture
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        pytest.fail("the study began to plan")

    monkeypatch.setattr("bitrank.planning.study_plans.study_specs", fail)


@pytest.mark.usefixtures("nothing_measured")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budgets", "7bitz"), "expected a budget such as 20MB, 4.25bits or =B-Q4, got '7bitz'"),
        (("--budgets", "=B-Q9"), "unknown config 'B-Q9'"),
        (("--budgets", "7bits,7bits"), "the study has the budget 7bits twice; give it once"),
        (("--arms", "exact,uniform,exact"), "the study has the arm exact twice; give it once"),
        (("--arms", "exact,B-FP,B-FP"), "the study has the arm B-FP twice; give it once"),
        (("--seeds", "0,1,0"), "the study has the seed 0 twice; give it once"),
        (("--seeds", "0,1000"), "seed 1000 is that of the runs that choose learning rates"),
        (("--tasks", "toy_sentences,toy_sentences"), "the study has the task toy_sentences twice"),
        (
            ("--rates", "1,0.3,1"),
            "the factors 1.0 and 1.0 of --rates give toy_sentences the same learning rate, 0.005",
        ),
        (
            ("--rates", "1,1.0001"),
            "the factors 1.0 and 1.0001 of --rates give toy_sentences the same learning rate, 0.005",
        ),
        (
            ("--rates", "1,300"),
            "the factor 300.0 of --rates does not fit toy_sentences, whose learning rate is 0.005: "
            "learning_rate must be at most 1.0, got 1.5",
        ),
        (("--rates", "300"), "learning_rate must be at most 1.0, got 1.5"),
        (("--arms", "uniform,equal-compute"), "equal-compute trains longer by the planning time of exact"),
        (
            ("--arms", "exact,equal-compute", "--set", "epochs=1"),
            "equal-compute needs a number of steps to add to, and toy_sentences trains by epochs",
        ),
    ],
)
def test_a_study_that_cannot_be_run_is_refused_before_measuring(
    capsys: pytest.CaptureFixture[str], place: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert main([*STUDY, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(place.iterdir())


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_passes_its_own_checks(name: str, quick: bool) -> None:
    samples = [make_spec(find_profile("smoke"), "B-FP", task) for task in ("toy_sentences", "toy_articles")]
    found = find_study(name, quick)
    check_study(found, samples)
    assert set(found.arms).isdisjoint(found.configs)


def test_an_arm_trains_longer_by_a_plan_of_the_same_command_alone() -> None:
    """That of an earlier command may be of other code or settings."""
    spec = make_spec(find_profile("smoke"), "B-FP", "toy_sentences")
    study_of_two = replace(find_study("eight-bits", quick=False), arms=("uniform", "equal-compute"))
    with pytest.raises(UserError, match="trains longer by the planning time of exact, which the study"):
        check_study(study_of_two, [spec])
    check_study(replace(study_of_two, arms=("exact", "equal-compute")), [spec])


@pytest.mark.usefixtures("nothing_measured")
def test_two_files_with_one_name_are_refused(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    rows = "".join(f"film {n} is good,{n % 2}\n" for n in range(40))
    for folder in ("a", "b"):
        (place / folder).mkdir()
        (place / folder / "q.csv").write_text("text,label\n" + rows)
    assert main([*STUDY[:-1], "a/q.csv,b/q.csv"]) == 2
    assert "the study has the task q twice; give it once; files need names of their own" in (
        capsys.readouterr().err
    )


def test_settings_of_the_users_own_file_reach_the_number_of_parallel_runs(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    rows = "".join(f"film {n} is good,{n % 2}\n" for n in range(40))
    (place / "q.csv").write_text("kommentar,urteil\n" + rows)
    columns = ("--set", "text_column=kommentar", "--set", "label_column=urteil")
    # Without a number of threads each run takes all cores, so one runs at a time.
    words = (*STUDY[:-1], "q.csv", *columns, "--forecast", "--set", "processes=2", "--set", "threads=1024")
    assert main([*words]) == 0
    assert "q.csv: 15 runs of about" in (shown := capsys.readouterr().out) and "with 1 at a time" in shown


def test_a_study_without_any_plan_ends_with_the_reasons(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitrank.planning.study_plans.study_specs", lambda *_: StudyRuns([], [LEFT_OUT]))
    assert main([*STUDY, "--jobs", "1"]) == 2
    assert capsys.readouterr().err == (
        "bitrank: nothing can be trained, because no arm has a plan; give larger --budgets or other --arms. "
        "exact at 7bits for toy_sentences: no plan: too small\n"
    )


def test_a_study_of_which_every_arm_is_left_out_of_its_grid_ends_with_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bitrank.planning.study_plans.study_specs", lambda *_: StudyRuns([SPEC], []))
    monkeypatch.setattr("bitrank.cli.study_rates.tuned_specs", lambda *_: ([], {}, {}))
    assert main([*STUDY, "--jobs", "1"]) == 1


@pytest.fixture
def trained(place: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The studies whose findings are kept; every run of a study is finished at once."""
    kept: list[str] = []
    monkeypatch.setattr("bitrank.planning.study_plans.study_specs", lambda *_: StudyRuns([SPEC], []))
    monkeypatch.setattr("bitrank.execution.matrix.run_study", lambda *_: [job(SPEC, "done")])
    for folder in ("eight-bits", "eight-bits-smoke"):
        Path("results", folder).mkdir(parents=True)
    monkeypatch.setattr(study, "_print_forecast", lambda *_: None)
    monkeypatch.setattr(study, "keep_findings", lambda store, name, folder, planning: kept.append(name))
    return kept


def test_a_study_in_a_server_ends_with_the_command_of_its_report(
    capsys: pytest.CaptureFixture[str], trained: list[str]
) -> None:
    words = [*STUDY, "--jobs", "1", "--store", "http://127.0.0.1:9"]
    assert study.act(_parser().parse_args(words), pytest.fail) == 0
    shown = capsys.readouterr().out
    assert "1 of 1 runs are complete." in shown
    assert (
        "report: not written: a tracking server has no tables to read. The runs are in its database; report: "
        "bitrank report --experiment bitrank-eight-bits-smoke --planning "
        "results/eight-bits-smoke/planning.json --store postgresql://USER@HOST/DATABASE (or the folder of "
        "its mlflow.db) --artifacts FOLDER (its --artifacts-destination, mounted or copied)"
    ) in shown
    assert trained == [] and Path("results/eight-bits-smoke/planning.json").exists()


def test_a_matrix_in_a_server_names_the_command_of_its_notes(capsys: pytest.CaptureFixture[str]) -> None:
    from bitrank.cli.notes import keep_findings

    keep_findings("http://127.0.0.1:9", "smoke", Path(".memory"))
    shown = capsys.readouterr().out
    assert shown.startswith("notes: not written: a tracking server has no tables to read.")
    assert "bitrank report --experiment bitrank-smoke --store postgresql://USER@HOST/DATABASE" in shown


@pytest.mark.parametrize(("profile", "kept"), [("smoke", []), ("laptop", ["eight-bits"])])
def test_a_study_of_profile_smoke_warns_and_keeps_no_findings(
    capsys: pytest.CaptureFixture[str], trained: list[str], profile: str, kept: list[str]
) -> None:
    words = ["study", "eight-bits", "--profile", profile, "--jobs", "1"]
    if profile == "smoke":
        words += ["--tasks", "toy_sentences"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bitrank.cli.study_checks.check_study", lambda *_: None)
        assert study.act(_parser().parse_args(words), lambda *_: "the report") == 0
    shown = capsys.readouterr().out
    assert "the report" in shown and (SMOKE_NOTICE in shown) == (profile == "smoke")
    assert trained == kept


class _Tracker:
    def __init__(self, runs: dict[str, StoredRun]) -> None:
        self._runs = runs

    def runs(self) -> dict[str, StoredRun]:
        return self._runs


def left_out(
    monkeypatch: pytest.MonkeyPatch, statuses: Sequence[str], runs: dict[str, StoredRun], place: Path
) -> None:
    """Choose rates for one arm where its runs end with ``statuses``, and the store has ``runs``."""
    monkeypatch.setattr(
        study_rates,
        "run_study",
        lambda due, *_: [job(spec, status) for spec, status in zip(due, statuses, strict=True)],
    )
    monkeypatch.setattr(study_rates, "resolve_hub_digests", lambda spec: spec)
    monkeypatch.setattr(study_rates, "open_jobs", lambda *_: (_Tracker(runs), []))
    (place / "results").mkdir()
    request = replace(find_study("eight-bits", quick=False), rates=(0.3, 1.0), walks=False)
    options = Options("runs", place / "results", Execution())
    assert study_rates.tuned_specs([SPEC], request, options)[:2] == ([], {})


@pytest.mark.parametrize(
    ("statuses", "reason"),
    [
        (
            ("locked", "locked"),
            "its grid of learning rates is not complete yet, another bitrank process is running 2 of its "
            "runs; repeat the command when they have ended",
        ),
        (("locked", "failed"), "a run of its grid of learning rates failed; repeat the command"),
    ],
)
def test_cells_that_another_process_runs_are_told_from_failed_ones(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    place: Path,
    statuses: tuple[str, str],
    reason: str,
) -> None:
    left_out(monkeypatch, statuses, {}, place)
    assert capsys.readouterr().out == f"exact-7bits on toy_sentences is left out: {reason}\n"


def test_a_cell_that_diverged_at_every_rate_is_not_called_failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    diverged = SimpleNamespace(tags={"finding": "diverged"}, status="FAILED", figures={})
    runs = {spec.spec_id: diverged for spec in grid_specs([SPEC], (0.3, 1.0))}
    left_out(monkeypatch, ("diverged", "diverged"), runs, place)  # type: ignore[arg-type]
    assert "training diverged at every learning rate of its grid" in capsys.readouterr().out
