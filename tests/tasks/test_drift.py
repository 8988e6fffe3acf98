"""Drift of captions: against the same counted in plain Python, and how it holds a run."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraclip.storage.parquet import write_table
from paraclip.tasks.drift import BOUND, check_drift, measure_drift
from paraclip.tasks.preflight import check_before_paying
from paraclip.tasks.run.run import Run
from paraclip_core.errors import InputError
from paraclip_core.lifetime import TempDir
from paraclip_core.settings import parse_settings
from tests.kit.small_runs import made
from tests.tasks.builders import captions_of

Caption = tuple[str | None, str]
"""Image and text."""


def written(path: Path, captions: Sequence[Caption]) -> list[str]:
    write_table(path, captions_of({"image_id": image, "caption": text} for image, text in captions))
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
        drift = measure_drift(written(folder / "a.parquet", before), written(folder / "b.parquet", now))
    came, went = Counter(i for i, _ in set(now) - set(before)), Counter(i for i, _ in set(before) - set(now))
    changed = sum((came & went)[image] for image in came if image is not None)
    assert (drift["captions before"], drift["captions now"], drift["changed"]) == (len(before), len(now), changed)
    assert (drift["new"], drift["vanished"]) == (came.total() - changed, went.total() - changed)
    split = [[re.findall(r"[^\W_]+", text.lower()) for _, text in side] for side in (before, now)]
    old, new = (Counter(word for text in side for word in text) for side in split)
    assert drift["words a caption before"] == round(old.total() / max(len(before), 1), 2)
    # Rounded to four digits as the figures are: a half goes to the even one.
    assert drift[BOUND[0]] == round(went.total() / max(len(before), 1), 4)
    assert drift[BOUND[1]] == round(sum(n for w, n in new.items() if w not in old) / max(new.total(), 1), 4)
    assert set(drift["most frequent new words"].split(", ")) - {""} == set(new) - set(old)


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """A run over these captions, ingested."""
    (tmp_path / "images").mkdir()
    for n in range(11):
        (tmp_path / "images" / f"{n}.png").touch()

    def run(texts: Sequence[str], **drift: Any) -> Run:
        with (tmp_path / "captions.csv").open("w", newline="") as file:
            rows = [[f"{n}.png", text, "train"] for n, text in enumerate(texts)]
            csv.writer(file).writerows([["image", "caption", "split"], *rows])
        source = {"path": "captions.csv", "images": "images"}
        plain = {"name": "night", "data": {"root": str(tmp_path), "sources": [source]}}
        settings = parse_settings(plain | {"run": {"root": str(tmp_path / "root"), "drift": drift}})
        made("ingest", settings)
        return Run(settings)

    return run


def test_drift_holds_a_run_before_it_pays(make: Any, tmp_path: Path) -> None:
    texts = [f"a red ball number {n}" for n in range(10)]
    first = make(texts, channel="production", limit=0.0)
    # No model yet.
    assert check_drift(first) == []
    served = {"fingerprint": "0" * 64, "stages": {"ingest": first.node("ingest").fingerprint}}
    first.store.set_channel("production", served)
    assert check_drift(first) == [] and not (tmp_path / "root" / "results").exists()

    shown = tmp_path / "root" / "results" / "night" / "drift.json"
    added = make([*texts, "two zebras cross a road"], channel="production", limit=0.2)
    assert check_before_paying(added) == []
    drift = json.loads(shown.read_text())
    assert (drift["figures"]["new"], drift["figures"]["vanished"], drift["held"]) == (1, 0, [])

    other = make([*texts[:5], *("an invoice" for _ in range(3))], channel="production", limit=0.3)
    with pytest.raises(InputError, match=r"share changed or vanished 0\.5.*run\.drift\.limit allows 0\.3"):
        check_before_paying(other)
    drift = json.loads(shown.read_text())
    assert (drift["figures"]["changed"], drift["figures"]["vanished"], len(drift["held"])) == (3, 2, 1)

    assert check_drift(make(texts, limit=0.0)) == [], "no channel, nothing to compare"
    first.store.set_channel("production", {"fingerprint": "0" * 64, "stages": {"ingest": "0" * 64}})
    assert "are gone: drift is not measured" in check_drift(make(texts, channel="production"))[0]
