"""Which measured rate belongs to a run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from paraclip_core.paraphrase.engines import make_engine
from paraclip_core.settings import load_settings
from storage.artifacts import ArtifactStore
from storage.rates import remember_rate
from tasks.rates import Measured, asked_for, keep_rate, measured_rate

SERVER = ["paraphrase.engine=openai", "paraphrase.model=m"]


def measured() -> Measured:
    values: dict[str, Any] = dict.fromkeys(Measured.__annotations__, 1)
    model = make_engine(load_settings(None, SERVER).paraphrase).model
    values.update(engine="openai", model=model)
    return Measured(**values)


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("paraphrase.sampling.n=8", False),
        ("paraphrase.sampling.max_tokens=400", False),
        ("paraphrase.prompts=paper", False),
        ("paraphrase.prompt_2=Again: {}", False),
        ("paraphrase.model=other", False),
        ("paraphrase.chunk=7", True),
        ("paraphrase.seed=3", True),
        ("paraphrase.fraction=0.5", True),
    ],
)
def test_a_rate_counts_for_what_was_asked(tmp_path: Path, override: str, same: bool) -> None:
    store = ArtifactStore(tmp_path)
    keep_rate(load_settings(None, SERVER), store, measured())
    found = measured_rate(load_settings(None, [*SERVER, override]), store)
    assert found == (measured() if same else None)


def test_a_rate_with_less_in_it_is_passed_over(tmp_path: Path) -> None:
    settings, store = load_settings(None, SERVER), ArtifactStore(tmp_path)
    known = asdict(measured())
    asked = asked_for(settings.paraphrase)
    remember_rate(store.cache, "openai", known["model"], asked, known | {"more": 1})
    assert measured_rate(settings, store) == measured()
    del known["prompt_factor"]
    remember_rate(store.cache, "openai", known["model"], asked, known)
    assert measured_rate(settings, store) is None


def test_a_file_has_none(tmp_path: Path) -> None:
    settings = load_settings(None, ["paraphrase.engine=file", "paraphrase.file.path=x.csv"])
    assert measured_rate(settings, ArtifactStore(tmp_path)) is None
