"""`paraclip init` for an image index and a log of queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paraclip_core.settings import load_settings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index and a log; no language model's server answers."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.chdir(tmp_path)
    np.save("index.npy", np.random.default_rng(0).normal(size=(50, 512)).astype(np.float16))
    Path("ids.txt").write_text("".join(f"photo {n}\n" for n in range(50)))
    rows = [
        f"a {colour} {thing},photo {n},{n + 1}" for colour in ("red", "old") for n, thing in enumerate(("car", "dog"))
    ]
    Path("log.csv").write_text(
        "query,image,count\n" + "\n".join([*rows, "jo@example.org,,1", *(f"tree {n},," for n in range(60))])
    )
    Path("train.csv").write_text("query,split\n" + "".join(f"a tree with {n} birds,train\n" for n in range(30)))
    return tmp_path


def init(*arguments: str, base: str = "ViT-B-32:laion2b_s34b_b79k") -> list[str]:
    return ["init", "--base", base, *arguments]


INDEX = ("--features", "index.npy", "--ids", "ids.txt", "--queries", "log.csv")


def test_it_writes_a_run_and_says_what_it_saw(folder: Path, cli: Any) -> None:
    facts = cli.json(init(*INDEX))
    settings = load_settings(folder / "paraclip.yaml")
    assert settings.data.index is not None and settings.data.index.ids == "ids.txt" and settings.data.min_words == 1
    assert settings.evaluate.control and settings.evaluate.queries == {} and settings.finetune.batch_size == 8
    assert facts["queries"] == {"accepted": 64, "rejected": {"personal": 1}}
    assert any(
        "64 different queries of 66 searches" in note and "4 of them led to a click" in note for note in facts["notes"]
    )
    assert any("taken on trust" in note for note in facts["notes"])
    assert any("answered at http://127.0.0.1:9/v1: the file" in note for note in facts["notes"])


def test_sentences_are_asked_about_as_captions_are_and_none_is_too_long(folder: Path, cli: Any) -> None:
    assert cli.json(init(*INDEX))["queries"]["accepted"] == 64
    assert "prompts: few-shot" in Path("paraclip.yaml").read_text()
    sentence = "a dog that has found a ball under the old car behind the house of its very young owner"
    Path("long.csv").write_text("search_term\n" + "".join(f"{sentence} number {n}\n" for n in range(30)))
    arguments = init(*INDEX[:-1], "long.csv", "--caption-column", "search_term", "--force")
    assert cli.json(arguments)["queries"] == {"accepted": 30, "rejected": {}}
    settings = load_settings("paraclip.yaml")
    assert "prompts: paper" in Path("paraclip.yaml").read_text() and settings.data.max_words == 21
    assert settings.data.sources[0].columns.caption == "search_term"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (init("--features", "index.npy"), "--queries, a log of queries, belong together"),
        (init(*INDEX, base="built-in"), "give --base the model that the index was made with"),
        (init(*INDEX, base="RN50:openai"), "512 numbers a row, but RN50:openai embeds into 1024"),
        (init(*INDEX, "--images", "x"), "leave out --captions and --images"),
        (init(*INDEX[:-1], "train.csv"), "leave the column `split` out of the log, or give some rows this split"),
        (init("--features", "no.npy", "--queries", "log.csv"), "--features: no.npy does not exist"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, cli: Any, arguments: list[str], message: str) -> None:
    said = cli(arguments, 1 if "embeds" in message or "split" in message else 2)
    assert message in " ".join(said.err.split())
    assert not (folder / "paraclip.yaml").exists()
