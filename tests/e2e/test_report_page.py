"""The report of a small run with hostile captions, gathered from real artifacts and opened in headless Chromium."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.files import write_json
from paraclip.storage.parquet import write_table
from paraclip.tasks.run.run import Run
from paraclip.tasks.run.stage import carry_out
from paraclip.tasks.stages.report import REPORT
from paraclip_core import tables
from paraclip_core.config import DataOptions, ScenesOptions, Settings
from paraclip_core.demo.scenes.render import write_scenes

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "{{ 7 * 7 }} ${7*7} </style><style>*{display:none}",
)
SETTINGS = Settings(name="demo run", data=DataOptions(scenes=ScenesOptions(images=120)))
PAIR_COLUMNS = ("base_caption_top", "base_rewording_top", "tuned_caption_top", "tuned_rewording_top")


def commit(store: ArtifactStore, name: str, fill: Any, inputs: dict[str, str], **metrics: Any) -> Artifact:
    """An artifact with the files that `fill` writes into its folder."""
    fingerprint = f"{name.encode().hex():0<64}"[:64]
    draft = Draft(name, fingerprint, 1, inputs, {"option": name, "html": HOSTILE[0]}, {"numpy": "2.4", name: "1.0"})
    with store.writing(name, fingerprint) as work:
        fill(work.out)
        return store.commit(draft, metrics, 12.5)


def ingested(folder: Path, rows: list[dict[str, Any]]) -> None:
    captions = [
        {
            "caption_id": tables.text_hash(row["image_id"], row["caption"]),
            "image_id": row["image_id"],
            "image_path": row["image"],
            "images": "images.tar",
            "caption": row["caption"],
            "caption_raw": row["caption"],
            "caption_tokens": [49406, 49407],
            "split": row["split"],
            "licence": row["licence"],
            "source": "captions.jsonl",
            "source_row": number,
        }
        for number, row in enumerate(rows)
    ]
    write_table(folder / "captions" / "part-0.parquet", pa.Table.from_pylist(captions, schema=tables.CAPTIONS))
    rejects = [
        {"source": "captions.jsonl", "source_row": n, "reason": reason, "detail": "1 word, not 2", "caption_raw": raw}
        for n, (reason, raw) in enumerate([("too_few_words", HOSTILE[0]), ("too_few_words", "dog"), ("empty", "")])
    ]  # fmt: skip
    rejects.append(
        {"source": "bad.csv", "source_row": None, "reason": "unreadable", "detail": "cut", "caption_raw": None}
    )
    write_table(folder / "rejects" / "part-0.parquet", pa.Table.from_pylist(rejects, schema=tables.REJECTS))


def paraphrased(folder: Path, rows: list[dict[str, Any]], step: int) -> None:
    train = [row for row in rows if row["split"] == "train"]
    found = [
        {
            "caption_id": tables.text_hash(row["image_id"], row["caption"]),
            "image_id": row["image_id"],
            "caption": row["caption"],
            "paraphrase_1": row["caption"].lower().replace("large", "big"),
            "paraphrase_2": f"We see {row['caption']}" if step == 2 else None,
            "caption_tokens": [1],
            "paraphrase_1_tokens": [1],
            "paraphrase_2_tokens": [1] if step == 2 else None,
            "similarity_1": 0.93,
            "similarity_2": 0.88 if step == 2 else None,
            "licence": row["licence"],
            "generation_1": bytes(16),
            "generation_2": None,
        }
        for row in train
    ]
    write_table(folder / "paraphrases" / "part-0.parquet", pa.Table.from_pylist(found, schema=tables.PARAPHRASES))
    rejects = [
        {"caption_id": bytes(16), "step": step, "attempt": 1, "reason": reason, "detail": "cosine 0.61 < 0.75",
         "input": train[n]["caption"], "answer": answer, "generation": bytes(16)}
        for n, (reason, answer) in enumerate([("echo", HOSTILE[1]), ("similarity", "a cat"), ("empty", None)])
    ]  # fmt: skip
    schema = tables.PARAPHRASE_REJECTS
    write_table(folder / "rejects" / "part-0.parquet", pa.Table.from_pylist(rejects, schema=schema))


def trained(folder: Path, losses: tuple[str, ...]) -> None:
    lines = []
    for step in range(1, 41):
        parts = {name: 6.2 * math.exp(-step / (14 + 6 * n)) + 1 for n, name in enumerate(losses)}
        lines.append({"step": step, "loss": sum(parts.values()), "losses": parts, "learning_rate": 1e-3})
        if step % 10 == 0:
            figures = {"text_to_image_recall@10": 40 + step / 3, "ao@10": 25 + step / 8}
            lines.append({"step": step, "validation": figures})
    (folder / "training_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    points = [{"alpha": a, "ao@10": 29 + 3 * a - a * a, "js@10": 24 + a, "text_to_image_recall@10": 54 - a * a}
              for a in (0.0, 0.25, 0.5, 0.75, 1.0)]  # fmt: skip
    write_json(
        folder / "alpha_sweep.json", {"alphas": points, "chosen": 0.5, "rule": "highest ao@10 that keeps recall"}
    )


def evaluated(folder: Path, rows: list[dict[str, Any]], rewordings: list[dict[str, str]]) -> None:
    figures = [
        ("rewordings", "paraphrased_retrieval", "ao@10", 29.04, 36.51, 6.2, 8.9),
        ("rewordings", "paraphrased_retrieval", "js@10", 24.0, 30.25, 4.9, 7.6),
        ("rewordings", "paraphrased_retrieval", "rewording_text_to_image_recall@10", 21.3, 30.1, 7.5, 10.2),
        ("scenes", "retrieval", "text_to_image_recall@10", 53.87, 53.61, -0.8, 0.3),
        ("scenes", "retrieval", "image_to_text_recall@1", 30.0, 28.9, -1.7, -0.4),
        ("sts-b", "sts", "spearman", 21.4, 24.9, 1.1, 5.9),
    ]
    table = [
        {"benchmark": b, "kind": k, "metric": m, "base": x, "tuned": y, "delta": y - x, "low": low, "high": high,
         "n": 750, "clusters": 750}
        for b, k, m, x, y, low, high in figures
    ]  # fmt: skip
    comparison = {"rows": table, "verdict": "promote", "confidence": 0.95, "resamples": 2000}
    words = {"reason": "rewordings ao@10 +7.47 [+6.20, +8.90] is clear of zero", "notes": ["sick was left out: absent"]}
    write_json(folder / "comparison.json", comparison | words)
    ids = sorted({row["image_id"] for row in rows if row["split"] == "val"})
    pairs = []
    for number, row in enumerate(rewordings):
        start = ids.index(row["image_id"])
        lists = [[ids[(start + shift * step) % len(ids)] for step in range(10)] for shift in (1, 3, 1, 2)]
        change = {0: 0.6, 1: -0.4}.get(number, 0.0)
        pairs.append(
            {"group": row["image_id"], "caption": row["caption"], "rewording": row["rewording"],
             "base_ao": 0.4, "tuned_ao": 0.4 + change, "base_js": 0.3, "tuned_js": 0.3,
             **dict(zip(PAIR_COLUMNS, lists, strict=True))}
        )  # fmt: skip
    pairs[0]["caption"], pairs[1]["rewording"] = HOSTILE[0], HOSTILE[1]
    write_table(folder / "per_query" / "rewordings.parquet", pa.Table.from_pylist(pairs, schema=tables.PER_QUERY))


def write_features(folder: Path) -> None:
    write_table(folder / "index.parquet", tables.FEATURE_INDEX.empty_table())
    write_table(folder / "rejects" / "part-00000.parquet", tables.REJECTS.empty_table())


def finished_run(root: Path) -> tuple[ArtifactStore, dict[str, Artifact]]:
    """A store with every stage before the report."""
    store = ArtifactStore(root)
    assert SETTINGS.data.scenes is not None
    options = SETTINGS.data.scenes
    found = {"scenes": commit(store, "scenes", lambda out: write_scenes(options, out), {}, images=60)}
    folder = found["scenes"].path
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    for row, text in zip(rows, HOSTILE, strict=False):
        row["caption"] = text
    rewordings = [json.loads(line) for line in (folder / "rewordings.jsonl").read_text().splitlines()]
    for name, fill in {
        "ingest": lambda out: ingested(out, rows),
        "paraphrase_1": lambda out: paraphrased(out, rows, 1),
        "paraphrase_2": lambda out: paraphrased(out, rows, 2),
        "features": write_features,
        "bootstrap": lambda out: trained(out, ("image~caption",)),
        "finetune": lambda out: trained(
            out, ("image~paraphrase_2", "caption~paraphrase_1", "paraphrase_1~paraphrase_2")
        ),
        "evaluate": lambda out: evaluated(out, rows, rewordings),
    }.items():
        hashes = {"image_tower_hash_before": "ab" * 32, "image_tower_hash_after": "ab" * 32}
        metrics = hashes if name == "finetune" else {"rows": len(rows)}
        found[name] = commit(store, name, fill, {key: a.fingerprint for key, a in found.items()}, **metrics)
    return store, found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store, found = finished_run(tmp_path_factory.mktemp("run"))
    assert set(REPORT.inputs(SETTINGS)) == set(found)
    draft = Draft("report", "0" * 64, 1, {}, {})
    artifact = carry_out(REPORT, draft, Run(SETTINGS, store), found)
    assert artifact.manifest.metrics["thumbnails"] > 20
    return artifact.path / "report.html"


def test_the_same_artifacts_give_the_same_bytes(report: Path, tmp_path: Path) -> None:
    store, found = finished_run(tmp_path)
    again = carry_out(REPORT, Draft("report", "0" * 64, 1, {}, {}), Run(SETTINGS, store), found)
    assert (again.path / "report.html").read_bytes() == report.read_bytes()


def test_the_page_is_self_contained(report: Path) -> None:
    page = report.read_text("utf-8")
    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert "https://" not in page
    assert "<script" not in page
    assert "<link" not in page
    assert len(page) < 2_000_000


@pytest.mark.e2e
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "light"), (1280, "dark")])
def test_a_browser_shows_it_without_errors_and_hostile_captions_stay_text(
    report: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_path is None:
        pytest.skip("no Chromium or Chrome is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    problems: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
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
        for hostile in HOSTILE:
            assert hostile in text
        assert "demo run" in page.inner_text("h1")
        assert "Promote" in text and "+7.47" in text and "CC0-1.0" in text
        assert page.locator("script, img, iframe, object, link").count() == 0
        assert page.locator("figure svg").count() == 6
        assert page.locator(".pair .thumb").count() == 80
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
        assert page.evaluate("getComputedStyle(document.querySelector('.pair .thumb')).backgroundImage").startswith(
            "url"
        )
        ids = page.evaluate("Array.from(document.querySelectorAll('[id]')).map(e => e.id)")
        assert len(ids) == len(set(ids))
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = false)")
        assert page.locator(".pair").first.is_visible() == (width > 700), "examples are folded on a phone alone"
        picture = tmp_path / f"report-{width}-{scheme}.png"
        page.screenshot(path=str(picture), full_page=True)
        assert picture.stat().st_size > 50_000
        browser.close()
    assert problems == []
