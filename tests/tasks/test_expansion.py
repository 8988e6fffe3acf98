"""Expanded queries: which paraphrases a query has, its mean feature, and that nothing is paid for twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paraclip.storage.parquet import read_table
from paraclip.tasks.expansion import Expansion, expand, paraphrase_queries, write_heads
from paraclip.tasks.run.run import Run
from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.expansion import read_heads
from paraclip_core.clip.load import load_clip
from paraclip_core.config import Settings
from paraclip_core.errors import BudgetError
from paraclip_core.settings import parse_settings
from paraclip_core.tables import HEADS
from tests.kit.openai_server import OpenAIServer, reply
from tests.kit.search_home import make_home

QUERIES = ["a red dog", "two cats on a sofa", "the sea at night"]
OFF = {"filters": {"preset": "off"}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models."""
    folder = tmp_path_factory.mktemp("home")
    make_home(folder)
    return folder


def settings_of(folder: Path, paraphrase: dict[str, Any], root: str = "root") -> Settings:
    run = {"root": str(folder / root), "threads": 1, "device": "cpu"}
    return parse_settings({"data": {"root": str(folder)}, "paraphrase": paraphrase, "run": run})


def scripted(engine: str, **more: Any) -> dict[str, Any]:
    return {"engine": f"tests.kit.scripted_engine:{engine}", "model": "m", **OFF, **more}


def served(server: OpenAIServer, **openai: Any) -> dict[str, Any]:
    prices = {"price_per_million_prompt_tokens": 100_000, "price_per_million_completion_tokens": 200_000}
    options = {"base_url": server.url, "api_key_env": "NO_KEY", "concurrency": 1, "retries": 1}
    paraphrase = {"engine": "openai", "model": "smol", "prompts": "paper", "chunk": 1, **OFF}
    return paraphrase | {"sampling": {"n": 2, "max_tokens": 5}, "openai": options | prices | openai}


def asked(settings: Settings, queries: Sequence[str] = QUERIES, most: int = 3) -> Expansion:
    return paraphrase_queries(Run(settings), queries, most)


def test_step_1_comes_first_and_step_2_fills_up(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, scripted("Several"))
    one = "a red dog"
    (texts,) = asked(settings, [one], 3).paraphrases
    assert texts == [f"first {one}", f"second {one}", f"first first {one}"]
    assert asked(settings, [one], 1).paraphrases == [texts[:1]]
    assert asked(settings, [one], 5).paraphrases == [[*texts, f"first second {one}"]], (
        "one of step 2 for each of step 1"
    )


def test_what_is_enough_after_step_1_asks_no_more(tmp_path: Path) -> None:
    facts = asked(settings_of(tmp_path, scripted("Several")), QUERIES, 2).facts()
    assert (facts["asked"], facts["paraphrases"], facts["spend"]) == (3, 6, None)


def test_the_same_words_are_one_paraphrase(openai_server: OpenAIServer, tmp_path: Path) -> None:
    openai_server.answer = lambda body: reply("A dog in red.", "a dog in red")
    expansion = asked(settings_of(tmp_path, served(openai_server)), ["a red dog", "A dog, in red"])
    assert expansion.paraphrases == [["A dog in red."], []]
    assert expansion.facts()["asked"] == 3, "step 2 is asked about none twice"


def test_queries_without_a_paraphrase_are_kept_and_counted(tmp_path: Path) -> None:
    # It is unable to say anything of an odd number, and copies some.
    queries = ["the car 2 is fast", "\x07", "x" * 2001, "the car 1 is fast", "the car 2  is fast"]
    expansion = asked(settings_of(tmp_path, scripted("Writer")), queries)
    assert expansion.queries == queries
    assert [bool(texts) for texts in expansion.paraphrases] == [True, False, False, False, True]
    assert (
        expansion.paraphrases[0]
        == expansion.paraphrases[4]
        == ["near the street the car 2 is fast", "close to a road the car 2 is fast"]
    )
    facts = expansion.facts()
    assert (facts["queries"], facts["expanded"], facts["without_paraphrases"]) == (5, 2, 3)
    nothing = asked(settings_of(tmp_path, scripted("Refusing")), ["x" * 2001])
    assert nothing.paraphrases == [[]] and nothing.facts()["asked"] == 0


def test_the_vector_is_the_mean_of_the_models_features(tmp_path: Path, home: Path) -> None:
    (tmp_path / "own.csv").write_text(
        "caption,paraphrase_1,paraphrase_2\n"
        "a red dog,one dog in red,a hound of red colour\n"
        "a red dog,dog that is red,\n"
    )
    run = Run(settings_of(tmp_path, {"engine": "file", "file": {"path": "own.csv"}}))
    expansion, vectors = expand(run, str(home / "tuned"), QUERIES[:2], 3)
    assert expansion.paraphrases == [["one dog in red", "dog that is red", "a hound of red colour"], []]
    write_heads(tmp_path / "heads.parquet", run, str(home / "tuned"), expansion, vectors)
    table = read_table(tmp_path / "heads.parquet")
    assert table.schema == HEADS
    clip = load_clip(str(home / "tuned"))
    for row in table.to_pylist():
        features = np.stack([encode_texts(clip, [text])[0] for text in (row["query"], *row["paraphrases"])])
        mean = features.mean(axis=0)
        np.testing.assert_allclose(row["vector"], mean / np.linalg.norm(mean), atol=1e-6)
    heads = read_heads(tmp_path / "heads.parquet")
    assert heads.group("a red dog") == expansion.groups[0] and heads.model == str(home / "tuned")


def test_the_spending_cap_is_the_runs(openai_server: OpenAIServer, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, served(openai_server, max_spend=8))
    with pytest.raises(BudgetError):
        asked(settings)
    kept = sum(openai_server.answered.values())
    assert 0 < kept < 6
    assert asked(settings_of(tmp_path, served(openai_server))).facts()["cached"] == kept
