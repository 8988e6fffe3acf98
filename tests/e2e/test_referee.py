"""One small run of every stage, asked from many sides: the bytes of each, its report in Chromium, Python over it.

The bytes are held, so that a change that means to change nothing is seen to change nothing.

    python tests/e2e/test_referee.py tiny | demo

renews `tests/data/referee.json` after a change that was meant. Trained weights and answers of the embedded model are
the same bytes on processors of one kind only, so they are compared where the file's processor is this one.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from paraclip.storage.artifacts import Draft
from paraclip.tasks.run.execute import execute, run_stage
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.report import REPORT
from paraclip_core import tables
from paraclip_core.config import Settings
from paraclip_core.demo.render import write_scenes
from paraclip_core.settings import load_settings, parse_settings
from tests.kit.browser import chromium, needs_browser
from tests.kit.openai_server import OpenAIServer
from tests.kit.tiny_run import served, tiny_run, written

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

HELD = Path(__file__).parents[1] / "data" / "referee.json"
CONTENT = {".parquet", ".npy", ".npz", ".safetensors", ".tar", ".jsonl"}
"""Files with a stage's output. Cards, pages and manifests name versions and options, which may change."""
TRAINED = ("features", "built_in_base", "finetune", "control", "evaluate")
COMPUTED = {"tiny": TRAINED, "demo": ("paraphrase_1", "paraphrase_2", *TRAINED)}
"""Stages whose bytes depend on the processor."""


def processor() -> str:
    """What rounds: the maker, for whose processors libraries have kernels of their own, the instruction sets, and
    torch's version."""
    about = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    maker = next(iter(re.findall(r"vendor_id\s*: (\w+)", about)), platform.machine())
    matrices = "AMX " if "amx_tile" in about else ""
    return f"{maker} {torch.backends.cpu.get_cpu_capability()} {matrices}torch {torch.__version__.partition('+')[0]}"


def contents(run: Run) -> dict[str, dict[str, str]]:
    """sha256 of each file with content, by stage and path; every stage is run if it is not finished."""
    digests = {}
    for name in run.stages:
        folder = run_stage(name, run).path
        paths = sorted(path for path in folder.rglob("*") if path.suffix in CONTENT)
        digests[name] = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    return {name: files for name, files in digests.items() if files}


def tiny_settings(root: Path, url: str, **run: Any) -> Settings:
    """A run of every stage, control included, asked of a server that answers at once."""
    tree = tiny_run(root, served(url))
    tree["evaluate"]["control"] = True
    tree["run"] |= run
    return parse_settings(tree)


def tiny(root: Path) -> Run:
    """It, stage by stage and in one process each."""
    with OpenAIServer() as server:
        server.answer = written
        run = Run(tiny_settings(root, server.url))
        contents(run)
    return run


def demo(root: Path) -> Run:
    """The demo, as `make demo` runs it, but for held-out queries."""
    write_scenes(root / "demo-data")
    options = [f"run.root={root}", f"data.root={root / 'demo-data'}", "run.threads=2", "evaluate.queries=null"]
    return Run(load_settings("demo", options))


RUNS: dict[str, Callable[[Path], Run]] = {"tiny": tiny, "demo": demo}


def flow_of(settings: Settings) -> Any:
    """What a run says that a flow carries out."""
    from paraclip.flows.pipeline import pipeline
    from tests.kit.prefect_server import prefect_server

    with prefect_server():
        return pipeline(settings=settings)


def execute_here(draft: Draft, run: Run, inputs: Any, progress: Any) -> Any:
    """What `run_in_child` does, here."""
    return execute(run.stages[draft.stage], draft, run, inputs, progress)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The tiny run, as a flow whose stages share this process, which saves starting one for each."""
    with OpenAIServer() as server, pytest.MonkeyPatch.context() as patched:
        patched.setattr("paraclip.tasks.run.execute.run_in_child", execute_here)
        server.answer = written
        settings = tiny_settings(tmp_path_factory.mktemp("finished") / "root", server.url)
        outcome = flow_of(settings)
    assert {row["state"] for row in outcome["stages"]} == {"made"} and outcome["verdict"] in ("promote", "hold")
    return settings


@pytest.mark.parametrize("name", ["tiny", pytest.param("demo", marks=pytest.mark.nightly)])
def test_every_stage_has_the_bytes_that_are_held(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    held = json.loads(HELD.read_text())[name]
    digests = contents(Run(request.getfixturevalue("finished")) if name == "tiny" else demo(tmp_path))
    assert list(digests) == list(held["stages"])
    rounded = () if held["processor"] == processor() else COMPUTED[name]
    for stage, files in digests.items():
        if stage not in rounded:
            assert files == held["stages"][stage], f"{stage} has other bytes"


USE = """
import sys
import paraclip

settings, asking = map(paraclip.Settings.model_validate_json, sys.argv[1:3])
folder = sys.argv[3]
name, root = settings.name, settings.run.root
states = {row["stage"]: row["state"] for row in paraclip.plan(settings)}
assert states.pop("report") == "to run" and set(states.values()) == {"cached"}, states
result = paraclip.run(settings)
assert result.verdict in ("promote", "hold") and len(result) and result.report.is_file()
assert list(paraclip.run(settings)) == list(result) and "<table>" in result._repr_html_()
audit = paraclip.audit(name, root=root)
assert "ao@10, another caption" in {row["metric"] for row in audit}, audit
hits = paraclip.search("a red ball", name, root=root, count=3)
assert [row["rank"] for row in hits] == [1, 2, 3]
audit = paraclip.audit(name, [("a red ball", "a ball that is red")], root=root)
assert {row["model"] for row in audit} == {"base", "tuned", "difference"}
tried = paraclip.paraphrase(["a red ball on a table", "a"], asking)
assert [(row["caption"], bool(row["paraphrase_2"])) for row in tried] == [("a red ball on a table", True), ("a", False)]
assert paraclip.export(name, folder, root=root)
assert paraclip.load(folder).embed_dim == paraclip.load(name, root=root).embed_dim
assert "prefect" not in sys.modules
"""


def test_every_function_of_python_works_without_prefect(finished: Settings, tmp_path: Path, openai_server: Any) -> None:
    report = Run(finished).artifact("report")
    assert report is not None
    shutil.rmtree(report.path)
    openai_server.answer = written
    asking = tiny_settings(Path(finished.run.root), openai_server.url)
    settings = [tree.model_dump_json() for tree in (finished, asking)]
    command = [sys.executable, "-c", USE, *settings, str(tmp_path / "exported")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^report: made in [\d.]+ s, ", done.stderr, re.MULTILINE), "progress"


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "{{ 7 * 7 }} ${7*7} </style><style>*{display:none}",
)
TEXTS = {"caption", "caption_raw", "paraphrase_1", "paraphrase_2", "paraphrased_query", "detail", "answer"}
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
def report(finished: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a copy of the run whose every text is hostile."""
    root = tmp_path_factory.mktemp("run") / "root"
    shutil.copytree(finished.run.root, root)
    run = Run(finished.model_copy(update={"run": finished.run.model_copy(update={"root": str(root)})}))
    inputs = {name: artifact for name, artifact in run.artifacts().items() if name in REPORT.inputs(run.settings)}
    for artifact in inputs.values():
        for path in artifact.path.rglob("*.parquet"):
            make_hostile(path)
    rejects = {"caption_id": bytes(16), "step": 1, "attempt": 1, "reason": "echo", "input": "a dog"}
    rejects |= {"detail": HOSTILE[2], "answer": HOSTILE[1], "generation": bytes(16)}
    table = pa.Table.from_pylist([rejects], schema=tables.PARAPHRASE_REJECTS)
    pq.write_table(table, inputs["paraphrase_1"].path / "rejects" / "part-99999.parquet")
    pages = []
    for name in "ab":
        artifact = execute(REPORT, Draft("report", f"{name:0<64}", 1, {}, {}), run, inputs)
        assert artifact.manifest.metrics["thumbnails"] > 10
        pages.append(artifact.path / "report.html")
    assert pages[0].read_bytes() == pages[1].read_bytes()
    return pages[0]


def test_the_report_is_self_contained(report: Path) -> None:
    page = report.read_text("utf-8")
    assert "http://" not in page.replace("http://www.w3.org/", "") and "https://" not in page
    assert "<script" not in page and "<link" not in page and len(page) < 2_000_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium("--disable-gpu", "--disable-background-networking") as opened:
        yield opened


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_browser_shows_the_report_without_errors_and_hostile_captions_stay_text(
    report: Path, browser: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert look(page, report, width) == []
    picture = tmp_path / "report.png"
    page.screenshot(path=str(picture), full_page=True)
    assert picture.stat().st_size > 50_000


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


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        record = {"processor": processor(), "stages": contents(RUNS[sys.argv[1]](Path(folder)))}
    kept = json.loads(HELD.read_text()) if HELD.exists() else {}
    HELD.write_text(json.dumps(kept | {sys.argv[1]: record}, indent=1) + "\n")
