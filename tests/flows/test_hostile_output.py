"""What the commands print holds nothing that a terminal obeys, whatever the artifacts hold."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from paraclip.flows.commands.common import print_json, print_table, say
from paraclip.storage.answers import AnswerStore
from paraclip.storage.artifacts import ArtifactStore, Draft
from paraclip_core.tables import GENERATIONS
from paraclip_core.text_safety import printable

DATA = Path(__file__).parents[1] / "data" / "attacks.jsonl"
ATTACKS: list[dict[str, Any]] = [json.loads(line) for line in DATA.read_text("utf-8").splitlines()]
TEXTS = [text for attack in ATTACKS for text in (attack["text"], *attack["obeyed"])]

Capture = pytest.CaptureFixture[str]


def check(shown: str) -> None:
    """Nothing but line breaks and tabs steers a terminal, and no character turns the reading direction."""
    controls = {char for char in shown if unicodedata.category(char) == "Cc"} - {"\n", "\t"}
    turned = {char for char in shown if unicodedata.bidirectional(char) in ("LRE", "RLE", "LRO", "RLO", "PDF")}
    turned |= {char for char in shown if unicodedata.bidirectional(char) in ("LRI", "RLI", "FSI", "PDI")}
    assert not controls | turned | (set(shown) & set("\u200e\u200f\u061c\u2028\u2029"))


def test_a_file_name_that_is_no_text_is_shown_and_does_not_stop_a_command(capsys: Capture) -> None:
    name = os.fsdecode(b"caf\xe9.csv")
    say(name)
    print_table("", ["source"], [{"source": name}])
    shown = capsys.readouterr().out
    assert shown.count("caf\ufffd.csv") == 2 and shown.encode()
    print_json({"source": name})
    shown = capsys.readouterr().out
    assert shown.encode() and json.loads(shown) == {"source": name}


def test_texts_are_printable(capsys: Capture) -> None:
    for text in TEXTS:
        say(text)
        check(printable(text))
    check(capsys.readouterr().out)


def test_json_escapes_what_a_terminal_would_obey_and_stays_the_same_data(capsys: Capture) -> None:
    value = {text: [text] for text in TEXTS}
    print_json(value)
    shown = capsys.readouterr().out
    check(shown)
    assert json.loads(shown) == value


def test_the_cache_and_the_artifacts_are_shown_safely(tmp_path: Path, cli: Any) -> None:
    store = ArtifactStore(tmp_path)
    options = {str(number): text for number, text in enumerate(TEXTS)}
    inputs = {f"source:{text}": "0" * 32 for text in TEXTS}
    with store.writing("ingest", "f" * 32) as work:
        (work.out / "made.txt").write_text("made")
        store.commit(Draft("ingest", "f" * 32, 1, inputs, options), {text: text for text in TEXTS}, 1.0)
    rows = [
        {"key": bytes([number // 256, number % 256, *bytes(14)]), "step": 1, "attempt": 0, "input": text}
        | {"engine": text, "model": text, "prompt": text, "prompt_hash": bytes(16), "sampling": text, "seed": 0}
        | {"completions": [text], "prompt_tokens": 1, "completion_tokens": 1}
        for number, text in enumerate(TEXTS)
    ]
    cache = AnswerStore(store.cache)
    cache.append(pa.Table.from_pylist(rows, schema=GENERATIONS))
    cache.close()
    for command in ("cache stats", "artifacts ls", "artifacts verify", "artifacts gc", "artifacts show ffff"):
        for more in ([], ["--json"]):
            check(cli([*command.split(), "--root", str(tmp_path), *more]).out)
    assert cache.stats().keys == len(TEXTS)
