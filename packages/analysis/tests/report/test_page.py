"""The page in a real headless Chromium: all charts are drawn, without log messages or network requests."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bitrank_analysis import load_study, open_store
from bitrank_analysis.report import collect
from bitrank_analysis.report.page import page
from studies import ARMS, add_study

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
    "--window-size=1280,900",
)
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and shutil.which("chromedriver")), reason="needs chromium and chromium-driver"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def write_page(folder: Path) -> Path:
    """Write the page about the store in ``folder``; returns its path."""
    path = folder / "report.html"
    path.write_text(page(collect(load_study(open_store(str(folder))))), encoding="utf-8")
    return path


def open_page(browser: Any, path: Path) -> None:
    """Open the page and wait until the last chart is drawn."""
    [browser.get_log(kind) for kind in ("performance", "browser")]
    browser.get(path.as_uri())
    for _ in range(150):
        if browser.execute_script("return document.documentElement.dataset.drawn") == "yes":
            return
        time.sleep(0.2)
    raise AssertionError(f"the charts were not drawn: {browser.get_log('browser')}")


def requested(browser: Any) -> set[str]:
    """URLs that the page has requested."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }


@pytest.mark.parametrize(
    ("arms", "tasks", "seeds", "charts"),
    [
        (tuple(ARMS), ("movies", "wiki"), 3, 22),
        (("Joint-2",), ("wiki",), 1, 10),
        (("Joint-2",), ("specs",), 1, 10),
    ],
    ids=["full", "one arm", "a task with the name of a part of the page"],
)
def test_all_charts_are_drawn_without_log_messages_or_requests(
    browser: Any,
    maker: Any,
    tmp_path: Path,
    arms: tuple[str, ...],
    tasks: tuple[str, ...],
    seeds: int,
    charts: int,
) -> None:
    add_study(maker, arms, tasks, seeds)
    path = write_page(tmp_path)
    open_page(browser, path)
    assert browser.get_log("browser") == []
    assert {address for address in requested(browser) if not address.startswith("data:")} == {path.as_uri()}
    drawn = browser.find_elements("css selector", ".chart svg")
    assert len(drawn) == len(browser.find_elements("css selector", "figure")) == charts
    assert all(chart.size["width"] > 200 and chart.size["height"] > 50 for chart in drawn)


def test_page_fits_a_phone_and_follows_the_dark_colour_scheme(
    browser: Any, maker: Any, tmp_path: Path
) -> None:
    add_study(maker, ("B-FP", "B-Q4"), ("movies",))
    path = write_page(tmp_path)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True},
    )
    try:
        open_page(browser, path)
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
        light = _colours(browser)
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        )
        dark = _colours(browser)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert light == ["rgb(255, 255, 255)", "rgb(31, 35, 40)"]
    assert dark == ["rgb(18, 22, 27)", "rgb(230, 237, 243)"]


@pytest.mark.parametrize("seeds", [1, 3])
def test_no_table_is_cut_on_a_laptop_or_a_phone(browser: Any, maker: Any, tmp_path: Path, seeds: int) -> None:
    add_study(maker, tuple(ARMS), ("movies", "wiki"), seeds)
    path = write_page(tmp_path)
    try:
        for width in (1280, 400):
            browser.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
            )
            open_page(browser, path)
            browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
            tables = browser.execute_script(_SIZES)
            assert len(tables) > 6
            cut = [table for table in tables if table["needed"] > table["shown"]]
            assert not cut, "\n".join(map(str, cut))
            verdicts = browser.find_elements("css selector", "td.verdict")
            assert verdicts
            assert all(cell.rect["x"] + cell.rect["width"] <= width for cell in verdicts)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


_SIZES = """
return [...document.querySelectorAll('.scroll')].map(one => ({
    text: one.innerText.slice(0, 200), shown: one.clientWidth, needed: one.scrollWidth}))
"""


def _colours(browser: Any) -> list[str]:
    """Colour of the page's background, and of an axis title in the first chart."""
    title = "document.querySelector('.chart .role-axis-title text')"
    return browser.execute_script(
        f"return [getComputedStyle(document.body).backgroundColor, getComputedStyle({title}).fill]"
    )
