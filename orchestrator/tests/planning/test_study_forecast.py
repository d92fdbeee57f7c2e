"""The forecast of a study counts every run and every step that planners train."""

from __future__ import annotations

from dataclasses import replace

from bitrank.planning.planner_studies import STUDIES
from bitrank.planning.study_forecast import TaskForecast, forecast_lines, run_counts, trained_steps


def test_runs_of_all_arms_seeds_and_rates_are_counted() -> None:
    study = STUDIES["allocators"]
    cells = 9 * 3 + len(study.configs)
    assert run_counts(study) == (cells * 3, cells * 5)
    assert run_counts(replace(study, rates=())) == (cells * 3, 0)
    assert run_counts(replace(study, rates=(0.1,))) == (cells * 3, 0), "nothing to choose"
    assert run_counts(study, unfit=2) == ((cells - 2) * 3, (cells - 2) * 5)


def test_steps_of_searches_and_races_are_counted() -> None:
    study = replace(STUDIES["allocators"], arms=("exact", "best-search"), evaluations=24, tries=10)
    assert trained_steps(study) == 4 * 24 * 10
    assert trained_steps(replace(study, arms=("race",))) == 10 * (6 * 1 + 3 * 2 + 2 * 4)
    assert trained_steps(replace(study, arms=("uniform",))) == 0


def test_hours_are_divided_by_the_runs_at_a_time() -> None:
    task = TaskForecast("articles", runs=10, seconds=360.0, planning=3600.0, basis="a guess")
    lines = forecast_lines([task, task], jobs=2)
    assert "articles: 10 runs of about 360 s (a guess), and 1.0 h of short trainings" in lines[0]
    assert lines[-1].startswith("in all about 2.0 h with 2 at a time")


def test_runs_that_choose_rates_have_a_time_of_their_own() -> None:
    task = TaskForecast("articles", 10, 60.0, 0.0, "a guess", rate_runs=30, rate_seconds=40.0)
    assert task.total == 10 * 60 + 30 * 40
    (line, _) = forecast_lines([task], jobs=1)
    assert "10 runs of about 60 s (a guess), up to 30 of about 40 s that choose learning rates" in line


def test_arms_that_do_not_fit_are_stated() -> None:
    task = TaskForecast("articles", 10, 36.0, 0.0, "a guess", unfit=3)
    assert task.total == 10 * 36
    (line, _) = forecast_lines([task], jobs=1)
    assert "3 pairs of arm and budget that do not fit" in line
