"""`bitrank ui` in a real headless Chromium: the leaderboard shows runs, metrics and params."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bitrank.tracking.mlflow_views import experiment_views
from study_tools import SMOKE, bitrank

VIEWS = experiment_views()
TASKS = ("toy_articles", "toy_sentences")
HEADS = ("config", "quality", "untrained", "stored MiB", "peak MiB", "tokens/s")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1900,900",
)
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and shutil.which("chromedriver")), reason="needs chromium and chromium-driver"
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A small smoke study served by `bitrank ui`: view name → address."""
    cwd = tmp_path_factory.mktemp("ui")
    assert bitrank(*SMOKE, "--configs", "B-FP,B-Q4", cwd=cwd).returncode == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [sys.executable, "-m", "bitrank", "ui", "--profile", "smoke", "--port", str(port)]
    server = subprocess.Popen(
        arguments,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert server.stdout is not None
    lines = [server.stdout.readline() for _ in range(len(VIEWS) + 2 * len(TASKS))]
    links = {name: address.strip() for name, _, address in (line.partition(":") for line in lines)}
    # The server logs every request: a full pipe would stop it after a dozen pages.
    threading.Thread(target=server.stdout.read, daemon=True).start()
    _wait(f"http://127.0.0.1:{port}/health")
    yield links
    import os
    import signal

    os.killpg(server.pid, signal.SIGTERM)
    server.wait(timeout=30)


def _wait(address: str) -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(address, timeout=2)
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the server did not come up")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def text_when(browser: Any, *needed: str) -> str:
    """The page's text as soon as it contains all of ``needed``."""
    shown = ""
    for _ in range(120):
        shown = browser.find_element("tag name", "body").text
        if all(word in shown for word in needed):
            return shown
        time.sleep(0.5)
    raise AssertionError(f"not all of {needed} are on the page:\n{shown[:3000]}")


def test_leaderboard_shows_runs_metrics_and_params(
    served: dict[str, str], browser: Any, tmp_path: Path
) -> None:
    browser.get(served["Leaderboard"])
    shown = text_when(
        browser,
        "B-FP toy_articles s0",
        "B-Q4 toy_sentences s0",
        "eval/acc",
        "eval/ppl",
        "model/mib",
        "tiny-llama",
    )
    assert "tiny-bert" in shown and "config" in shown
    browser.save_screenshot(str(tmp_path / "leaderboard.png"))


def test_grouped_view_shows_cells(served: dict[str, str], browser: Any) -> None:
    browser.get(served["Mean over seeds, by cell"])
    shown = text_when(browser, "Group by: cell", "Group: B-FP · t", "Group: B-Q4 · t", "eval/acc")
    assert "(average)" in shown


@pytest.mark.parametrize("task", TASKS)
def test_the_leaderboard_of_a_task_shows_its_runs_best_first(
    served: dict[str, str], browser: Any, task: str
) -> None:
    browser.get(served[f"{task}, best first"])
    shown = text_when(browser, f"B-FP {task} s0", f"B-Q4 {task} s0", "2 matching runs", *HEADS)
    (other,) = set(TASKS) - {task}
    assert f"{other} s0" not in shown
    cells = browser.find_elements("css selector", '[role="gridcell"][col-id*="quality"]')
    figures = [cell.text for cell in cells]
    assert len(figures) == 2
    assert all(len(figure.replace(".", "").lstrip("0")) == 3 for figure in figures), figures
    qualities = [float(figure) for figure in figures]
    assert qualities == sorted(qualities, reverse=task == "toy_sentences")


@pytest.mark.parametrize("name", [view.name for view in VIEWS if not (view.chart or view.group_by)])
def test_a_view_of_the_whole_experiment_shows_every_run(
    served: dict[str, str], browser: Any, name: str
) -> None:
    browser.get(served[name])
    runs = [f"{config} {task} s0" for config in ("B-FP", "B-Q4") for task in TASKS]
    shown = text_when(browser, *runs, "4 matching runs")
    assert all(run in shown for run in runs)


@pytest.mark.parametrize("name", ["Charts", *(f"{task}, charts" for task in TASKS)])
def test_a_charts_view_draws_charts_of_its_runs(served: dict[str, str], browser: Any, name: str) -> None:
    browser.get(served[name])
    task = name.partition(",")[0]
    runs = "4 matching runs" if name == "Charts" else "2 matching runs"
    text_when(browser, "Add chart", runs, f"B-Q4 {TASKS[0] if name == 'Charts' else task} s0")
    charts: list[Any] = []
    for _ in range(60):
        # MLflow draws charts outside the window only after scrolling to them.
        charts = browser.find_elements("css selector", ".js-plotly-plot, .plotly, svg.main-svg")
        if charts:
            break
        time.sleep(0.5)
    assert charts, "no chart was drawn"
