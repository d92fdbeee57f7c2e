"""Arithmetic of ``benchmarks/rank_rate.py``: its runs, the neutrality of a policy, table and figure; no
training."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from bitrank.spec.profiles import PROFILES
from bitrank_adapters import SCALE_POLICIES, AdapterScale

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def rank_rate() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return importlib.import_module("rank_rate")


@pytest.fixture(scope="module")
def report(rank_rate: ModuleType) -> ModuleType:
    return importlib.import_module("rank_rate_report")


RATES = [1e-4, 1e-3, 1e-2]


def losses_of(rank_rate: ModuleType, best: dict[float, float]) -> dict:
    """Losses that grow with the distance (in decades) of s · rate from a best product by rank."""
    cells = rank_rate.cells_of(["toy"], [2, 8, 64], RATES, [0, 1])
    return {
        cell: 0.1 * cell.seed
        + abs(math.log10(AdapterScale(policy=cell.policy).of(cell.rank) * cell.rate / best[cell.rank]))
        for cell in cells
    }


def test_equal_scales_share_a_run(rank_rate: ModuleType) -> None:
    cells = rank_rate.cells_of(["toy"], [2, 8, 64], RATES, [0, 1])
    scales = {(c.rank, AdapterScale(policy=c.policy).of(c.rank), c.rate, c.seed) for c in cells}
    assert len(cells) == len(set(cells)) == len(scales) == 7 * len(RATES) * 2
    wanted = {
        (rank, AdapterScale(policy=policy).of(rank)) for policy in SCALE_POLICIES for rank in (2, 8, 64)
    }
    assert {(rank, scale) for rank, scale, *_ in scales} == wanted


def test_the_default_grid_has_steps_of_root_ten(rank_rate: ModuleType) -> None:
    assert rank_rate.RATES[0] == 1e-4 and rank_rate.RATES[-1] == 1e-2
    for low, high in zip(rank_rate.RATES, rank_rate.RATES[1:], strict=False):
        assert high / low == pytest.approx(10**0.5, rel=1e-5)


def test_a_run_is_the_16_bit_arm_at_the_cell_s_settings(rank_rate: ModuleType) -> None:
    profile = replace(PROFILES["smoke"], name=rank_rate.NAME)
    cell = rank_rate.Cell("toy_articles", "rslora", 2, 3e-3, 1)
    spec = rank_rate.spec_of(profile, cell, None)
    assert (spec.config, spec.rank, spec.learning_rate, spec.scale_policy) == ("B-FP", 2, 3e-3, "rslora")
    assert (spec.seed, spec.steps, spec.eval_every, spec.profile) == (1, 30, 30, "rank-rates")


def test_a_policy_is_neutral_where_its_scale_follows_the_best_product(
    rank_rate: ModuleType, report: ModuleType
) -> None:
    """If the best s · rate is ∝ 1/r, α/r has one best rate, and a constant scale two decades apart."""
    best = {rank: 2e-3 * 8 / rank for rank in (2, 8, 64)}
    table = report.mean_losses(losses_of(rank_rate, best))["toy"]
    assert set(table) == set(SCALE_POLICIES)
    alpha, constant = report.neutrality(table["alpha"]), report.neutrality(table["constant"])
    assert alpha.best == {2: 1e-3, 8: 1e-3, 64: 1e-3} and (alpha.steps, alpha.common) == (0, 1e-3)
    assert alpha.regret == pytest.approx(0.0)
    assert constant.best == {2: 1e-2, 8: 1e-3, 64: 1e-4} and constant.steps == 2
    assert constant.regret > 0.1


def test_a_seed_that_diverged_excludes_its_rate(rank_rate: ModuleType, report: ModuleType) -> None:
    losses = losses_of(rank_rate, dict.fromkeys((2, 8, 64), 2e-3))
    cell = next(c for c in losses if (c.rank, c.rate, c.seed) == (8, 1e-3, 1))
    found = report.neutrality(report.mean_losses({**losses, cell: math.inf})["toy"]["constant"])
    assert found.best[8] != 1e-3 and math.isfinite(found.regret)


def test_an_unfinished_grid_has_no_verdict(rank_rate: ModuleType, report: ModuleType, tmp_path: Path) -> None:
    losses = losses_of(rank_rate, dict.fromkeys((2, 8, 64), 2e-3))
    part = {cell: loss for cell, loss in losses.items() if (cell.rank, cell.rate) != (64, 1e-2)}
    assert report.neutrality(report.mean_losses(part)["toy"]["alpha"]) is None
    report.write_report(part, tmp_path, dict.fromkeys(part, 30))
    assert "incomplete" in (tmp_path / "index.md").read_text()


def test_the_report_holds_every_run_as_table_json_and_figure(
    rank_rate: ModuleType, report: ModuleType, tmp_path: Path
) -> None:
    losses = losses_of(rank_rate, dict.fromkeys((2, 8, 64), 2e-3))
    first = next(iter(losses))
    losses[first] = math.inf
    report.write_report(losses, tmp_path, dict.fromkeys(losses, 30))
    data = json.loads((tmp_path / "rank-rates.json").read_text())
    assert len(data["runs"]) == len(losses)
    assert [run["val_loss"] for run in data["runs"]].count(None) == 1
    page = (tmp_path / "index.md").read_text()
    assert "diverged" in page and "30 steps, seeds 0, 1." in page
    assert all(f"`{policy}`" in page for policy in SCALE_POLICIES)
    assert (tmp_path / "rank-rates.svg").read_text().startswith("<svg")
    assert (tmp_path / "rank-rates.png").read_bytes().startswith(b"\x89PNG")
