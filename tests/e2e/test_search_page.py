"""`paraclip ui` in headless Chromium: a query and its paraphrase, α, narrow screens, accessibility."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paraclip.storage.artifacts import ArtifactStore, Draft
from paraclip.tasks.channels import BY_RUN, moved
from tests.kit.search_home import make_home

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the page is served."""
    home = tmp_path_factory.mktemp("ui")
    make_home(home)
    make_run(home)
    command = f"""ui --model photos --base {home}/base --features {home}/index.npy --ids {home}/ids.txt
        --images {home}/pictures --root {home}/root --port 0""".split()
    command = [sys.executable, "-m", "paraclip.flows.cli", *command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        addresses = filter(None, (re.search(r"search page: (\S+)", line) for line in process.stdout))
        try:
            yield next(addresses)[1]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def make_run(home: Path) -> None:
    """A run's model in the channel `photos`, held, with its report."""
    store, stages = ArtifactStore(home / "root"), {"finetune": "f" * 32, "report": "e" * 32}
    with store.writing("finetune", stages["finetune"]) as work:
        shutil.copytree(home / "tuned", work.out / "release")
        store.commit(Draft("finetune", stages["finetune"], 1, {}, {}), {}, 1)
    with store.writing("report", stages["report"]) as work:
        (work.out / "report.html").write_text("<style>h1 { color: rgb(1, 2, 3) }</style><h1>Hold</h1>")
        store.commit(Draft("report", stages["report"], 1, {}, {}), {}, 1)
    store.set_channel("photos", moved(None, stages, "hold", BY_RUN, "JS@10 fell by <b>7</b> points"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page of a size, which must have no error until the test's end."""
    pages, errors = [], []

    def open_page(url: str, width: int, height: int = 900, **view: Any) -> Any:
        pages.append(page := browser.new_page(viewport={"width": width, "height": height}, **view))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        return page

    yield open_page
    assert not errors
    for page in pages:
        page.close()


def says(page: Any, text: str | re.Pattern[str]) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#message")).to_have_text(text)


def test_a_search_from_the_first_word_to_images_like_one(address: str, opened: Callable[..., Any]) -> None:
    from playwright.sync_api import expect

    page = opened(address, 1280)
    says(page, re.compile("^Type a query"))
    page.keyboard.type("a dog")
    page.wait_for_selector("section[aria-label=tuned] li img")
    page.fill("#paraphrased_query", "rain on the roof")
    page.wait_for_selector("section[aria-label=tuned] h2 b")
    figures = page.inner_text("section[aria-label=tuned] h2")
    assert re.search(r"AO@10 \d+ JS@10 \d+", figures)
    page.focus("#alpha")
    page.keyboard.press("Home")
    grids = [page.locator(f"section[aria-label={name}] .grid").first for name in ("base", "tuned")]
    expect(grids[1]).to_have_text(grids[0].text_content(), use_inner_text=False)
    second = page.locator("section[aria-label=base] .grid").first.locator("li").nth(1)
    image = second.locator("p").inner_text()
    assert "<b>" in image, "ids are text, not HTML"
    page.locator(f"[aria-label='images like {image}']").first.click()
    page.wait_for_selector("#like b")
    expect(page.locator("section[aria-label=results] li:first-child p")).to_have_text(image)


def top(page: Any, model: str, number: int) -> dict[str, float]:
    """Where the first picture of a query's list is."""
    return page.locator(f"section[aria-label={model}] ol").nth(number).locator("img").first.bounding_box()


def test_an_address_shows_both_queries_and_what_to_think_of_the_model(address: str, opened: Callable[..., Any]) -> None:
    from playwright.sync_api import expect

    page = opened(f"{address}?q=a+dog&q2=%3Cb%3Ehound&alpha=0.5", 1280, 800)
    page.wait_for_selector("section[aria-label=tuned] h2 b")
    expect(page.locator("section[aria-label=base] h3")).to_have_text(["a dog", "<b>hound"])
    places = [top(page, model, number) for model in ("base", "tuned") for number in (0, 1)]
    assert len({place["x"] for place in places}) == 4 and len({place["y"] for place in places}) == 1, "side by side"
    assert all(place["y"] + place["height"] < 800 for place in places)
    page.set_viewport_size({"width": 390, "height": 844})
    places = [top(page, model, number) for model in ("base", "tuned") for number in (0, 1)]
    assert len({place["x"] for place in places}) == 1, "one below the other"
    assert places[1]["y"] + places[1]["height"] < 844, "both queries on one screen"
    page.fill("#paraphrased_query", "")
    page.focus("#alpha")
    page.keyboard.press("End")
    expect(page).to_have_url(f"{address}?q=a+dog")
    expect(page.locator("#verdict")).to_have_text("hold: JS@10 fell by <b>7</b> points Report")
    page.click("#verdict a")
    expect(page.locator("h1")).to_have_css("color", "rgb(1, 2, 3)")
    page.go_back()
    expect(page.locator("#query")).to_have_value("a dog")
    page.wait_for_selector("section[aria-label=tuned] img")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_nothing_overflows_and_axe_has_no_serious_finding(
    address: str, opened: Callable[..., Any], width: int, scheme: Any
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = opened(address, width, color_scheme=scheme)
    page.fill("#query", "a dog")
    page.fill("#paraphrased_query", "the hound")
    page.wait_for_selector("section[aria-label=tuned] h2 b")
    # The second box's own search begins a moment after it was filled, and grays what is there.
    page.wait_for_timeout(600)
    page.wait_for_selector("#sides:not(.waiting)")
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    violations = Axe().run(page).response["violations"]
    assert not [one["id"] for one in violations if one["impact"] in ("serious", "critical")]


def test_a_server_that_is_gone_is_said(address: str, browser: Any) -> None:
    page = browser.new_page()
    page.goto(address)
    says(page, re.compile("^Type a query"))
    page.route("**/search", lambda route: route.abort())
    page.fill("#query", "a dog")
    says(page, re.compile("does not answer"))
    page.close()
