"""The report of the finished run, with hostile captions put into its tables, opened in headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paraclip.storage.artifacts import Draft
from paraclip.tasks.run.dag import carry_out
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.report import REPORT
from paraclip_core import tables
from paraclip_core.settings import parse_settings

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "{{ 7 * 7 }} ${7*7} </style><style>*{display:none}",
)
TEXTS = {"caption", "caption_raw", "paraphrase_1", "paraphrase_2", "rewording", "detail", "answer"}
"""Columns that hold what a stranger wrote."""


def make_hostile(path: Path) -> None:
    """Put hostile texts into every column of texts that a table has."""
    table = pq.read_table(path)
    for place, field in enumerate(table.schema):
        if field.name in TEXTS:
            texts = pa.array(islice(cycle(HOSTILE), table.num_rows), field.type)
            table = table.set_column(place, field, texts)
    pq.write_table(table, path)


@pytest.fixture(scope="module")
def make_report(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes the page in a work folder of a name."""
    root = tmp_path_factory.mktemp("run") / "root"
    shutil.copytree(finished.root, root)
    settings = parse_settings(finished.settings | {"run": {"root": str(root), "threads": 1}})
    inputs = {name: artifact for name, artifact in Run(settings).artifacts().items() if name in REPORT.inputs(settings)}
    for artifact in inputs.values():
        for path in artifact.path.rglob("*.parquet"):
            make_hostile(path)
    rejects = {"caption_id": bytes(16), "step": 1, "attempt": 1, "reason": "echo", "input": "a dog"}
    rejects |= {"detail": HOSTILE[2], "answer": HOSTILE[1], "generation": bytes(16)}
    table = pa.Table.from_pylist([rejects], schema=tables.PARAPHRASE_REJECTS)
    pq.write_table(table, inputs["paraphrase_1"].path / "rejects" / "part-99999.parquet")

    def make(name: str) -> Path:
        artifact = carry_out(REPORT, Draft("report", f"{name:0<64}", 1, {}, {}), Run(settings), inputs)
        assert artifact.manifest.metrics["thumbnails"] > 10
        return artifact.path / "report.html"

    return make


@pytest.fixture(scope="module")
def report(make_report: Callable[[str], Path]) -> Path:
    return make_report("a")


@pytest.mark.slow
def test_the_page_is_self_contained_and_the_same_bytes_again(report: Path, make_report: Callable[[str], Path]) -> None:
    page = report.read_text("utf-8")
    assert "http://" not in page.replace("http://www.w3.org/", "") and "https://" not in page
    assert "<script" not in page and "<link" not in page and len(page) < 2_000_000
    assert make_report("b").read_bytes() == report.read_bytes()


@pytest.mark.e2e
@pytest.mark.slow
def test_a_browser_shows_it_without_errors_and_hostile_captions_stay_text(report: Path, tmp_path: Path) -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium or Chrome is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        for width, scheme in ((1280, "light"), (390, "light"), (1280, "dark")):
            view: dict[str, Any] = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
            page = browser.new_page(**view)
            assert look(page, report, width) == [], (width, scheme)
            picture = tmp_path / f"report-{width}-{scheme}.png"
            page.screenshot(path=str(picture), full_page=True)
            assert picture.stat().st_size > 50_000
        browser.close()


def look(page: Any, report: Path, width: int) -> list[str]:
    """What a browser complained of while the page was seen from top to bottom."""
    problems: list[str] = []
    page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:")) else problems.append(request.url),
    )
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    text = page.inner_text("body")
    assert all(hostile in text for hostile in HOSTILE)
    assert ("Promote" in text or "Hold" in text) and "CC0-1.0" in text
    assert page.locator("script, img, iframe, object, link").count() == 0
    assert page.locator("figure svg").count() >= 4 and page.locator(".pair .thumb").count() >= 20
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    assert page.evaluate("getComputedStyle(document.querySelector('.pair .thumb')).backgroundImage").startswith("url")
    ids = page.evaluate("Array.from(document.querySelectorAll('[id]')).map(e => e.id)")
    assert len(ids) == len(set(ids))
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = false)")
    assert page.locator(".pair").first.is_visible() == (width > 700), "examples are folded on a phone alone"
    return problems
