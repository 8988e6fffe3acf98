"""`paraclip expand` and `search --paraphrases`: what they write, show and pay, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paraclip.storage.parquet import read_table
from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.load import load_clip
from paraclip_core.tables import HEADS
from tests.kit.openai_server import OpenAIServer
from tests.kit.search_home import make_home

QUERIES = ["a red dog", "two cats on a sofa", "the sea at night"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and an index."""
    folder = tmp_path_factory.mktemp("home")
    make_home(folder)
    return folder


@pytest.fixture
def config(tmp_path: Path, openai_server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings that ask the stand-in server, and queries next to them."""
    monkeypatch.delenv("PARACLIP_ROOT", raising=False)
    prices = {"price_per_million_prompt_tokens": 100_000, "price_per_million_completion_tokens": 200_000}
    openai = {"base_url": openai_server.url, "api_key_env": "NO_KEY", "retries": 0, "concurrency": 1, **prices}
    paraphrase = {"engine": "openai", "model": "smol", "prompts": "paper", "filters": {"preset": "off"}, "chunk": 1}
    content = {
        "run": {"root": str(tmp_path / "root"), "device": "cpu", "threads": 1},
        "paraphrase": {**paraphrase, "openai": openai},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(content))
    (tmp_path / "queries.txt").write_text("\n".join(QUERIES))
    return tmp_path / "run.yaml"


def command(config: Path, home: Path, *more: str) -> list[str]:
    queries, heads = config.parent / "queries.txt", config.parent / "out" / "heads.parquet"
    return ["expand", str(queries), "-o", str(heads), "-m", str(home / "tuned"), "-c", str(config), *more]


def test_the_second_call_asks_nothing(openai_server: OpenAIServer, config: Path, home: Path, cli: Any) -> None:
    heads = config.parent / "out" / "heads.parquet"
    first = cli.json(command(config, home))
    # Two answers a request, which pay 10 and 10 tokens, and one of step 2.
    assert first == {
        "heads": str(heads), "queries": 3, "expanded": 3, "without_paraphrases": 0, "paraphrases": 9, "asked": 6,
        "cached": 0, "prompt_tokens": 60, "completion_tokens": 60, "spend": 18.0,
    }  # fmt: skip
    written = heads.read_bytes()
    table = read_table(heads)
    assert table.schema == HEADS and table["query"].to_pylist() == QUERIES
    out, _ = cli(command(config, home))
    assert "asked: 0\n" in out and "cached: 6\n" in out and len(openai_server.asked) == 6
    assert heads.read_bytes() == written
    # A heads file is a file of queries.
    (config.parent / "more.csv").write_text("caption\na blue car\na red dog\n")
    more = cli.json(
        [*command(config, home)[:1], str(heads), str(config.parent / "more.csv"), *command(config, home)[2:]]
    )
    assert (more["queries"], more["asked"], more["cached"]) == (4, 2, 6)


def test_a_search_shows_the_mean_as_one_more_column(
    openai_server: OpenAIServer, config: Path, home: Path, cli: Any
) -> None:
    index = ["--base", str(home / "base"), "--features", str(home / "index.npy"), "--ids", str(home / "ids.txt")]
    search = ["search", QUERIES[0], "-m", str(home / "tuned"), *index, "-k", "3", "-c", str(config)]
    found = cli.json([*search, "--paraphrases", "3"])
    clip, texts = load_clip(str(home / "tuned")), [QUERIES[0], *found["paraphrases"]]
    assert len(texts) == 4
    mean = np.stack([encode_texts(clip, [text])[0] for text in texts]).mean(axis=0)
    features = np.load(home / "index.npy").astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    rows = np.argsort(-(features @ mean), kind="stable")[:3]
    assert [hit["image_id"] for hit in found["expanded"]] == [f"{row:02d} <b>.png" for row in rows]
    assert found["expansion"]["asked"] == 2
    out, _ = cli([*search, "--paraphrases", "3"])
    assert "expanded" in out and "expanded by: well " in out and "0 requests asked, which cost 0, 2 cached" in out
    assert "expanded" not in cli.json(search) and len(openai_server.asked) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", "text\na dog\n", "row 2: query or caption is None, expected text"),
        ("empty.txt", "", "empty.txt holds no query"),
        ("blank.csv", "query\n  \n", "blank.csv holds no query"),
    ],
)
def test_bad_input_is_refused_before_anything_is_paid(
    openai_server: OpenAIServer, config: Path, home: Path, cli: Any, name: str, content: str, message: str
) -> None:
    (config.parent / name).write_text(content)
    _, err = cli(["expand", str(config.parent / name), *command(config, home)[2:]], code=1)
    assert message in err and err.count("error: ") == 1
    assert not openai_server.asked and not (config.parent / "out").exists()


def test_a_wrong_name_is_refused_before_anything_is_paid(
    openai_server: OpenAIServer, config: Path, home: Path, cli: Any
) -> None:
    heads = str(config.parent / "out" / "heads.parquet")
    for wrong, right, message in (
        (heads, f"{heads}.csv", "ends with .parquet"),
        (str(home / "tuned"), "absent", "absent"),
    ):
        arguments = [right if text == wrong else text for text in command(config, home)]
        assert message in cli(arguments, code=2).err
    ui = ["ui", "-m", str(home / "tuned"), "--features", str(home / "index.npy"), "--heads", str(home / "ids.txt")]
    assert "expected a file that `paraclip expand` has written" in cli(ui, code=1).err
    assert not openai_server.asked
