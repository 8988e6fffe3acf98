"""`paraclip paraphrase` and `requests`: what they show, keep and count, and that no text steers a terminal."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from tests.kit.openai_server import OpenAIServer, reply, words_of

ATTACKS = Path(__file__).parents[1] / "data" / "attacks.jsonl"


@pytest.fixture
def config(tmp_path: Path, openai_server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings that ask the stand-in server."""
    monkeypatch.delenv("PARACLIP_ROOT", raising=False)
    content = {
        "run": {"root": str(tmp_path / "root")},
        "paraphrase": {
            "engine": "openai",
            "model": "smol",
            "prompts": "paper",
            "filters": {"preset": "off"},
            "openai": {"base_url": openai_server.url, "api_key_env": "NO_KEY", "retries": 0},
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(content))
    return path


def answer(server: OpenAIServer, *texts: str) -> None:
    server.answer = lambda asked: reply(*texts)


def shown(cli: Any, config: Path, *arguments: str, code: int = 0) -> tuple[str, str]:
    return cli(["paraphrase", "-c", str(config), *arguments], code)


def test_both_steps_are_shown_with_every_answer_and_the_reason(
    openai_server: OpenAIServer, config: Path, cli: Any
) -> None:
    answer(openai_server, "Answer: [bold]A child swings.[/]", "...")
    out, _ = shown(cli, config, "a kid on a swing")
    assert "1. a kid on a swing" in out and "step 1: a kid on a swing" in out
    assert "Answer: [bold]A child swings.[/]" in out and "step 2: [bold]A child swings.[/]" in out
    assert "1 of 1 captions have both paraphrases" in out
    assert "openai, smol: 2 requests asked (20 prompt tokens, 20 answered), 0 cached" in out
    answer(openai_server, "...")
    out, _ = shown(cli, config, "a red dog")
    assert "empty: no word in the answer" in out and "=> nothing, so the row is left out" in out


def test_answers_are_kept_and_cached_ones_used(openai_server: OpenAIServer, config: Path, cli: Any) -> None:
    answer(openai_server, "one of them", "another")
    out, _ = shown(cli, config, "a red dog", "a red dog", "a blue bar")
    assert "2. a blue bar" in out and "3. " not in out
    asked = len(openai_server.asked)
    out, _ = shown(cli, config, "a red dog")
    assert len(openai_server.asked) == asked
    assert "0 requests asked" in out and "2 cached" in out
    root, other, exported = (str(config.parent / name) for name in ("root", "other", "exported"))

    # They are taken along, and a part that is damaged is counted.
    assert cli.json(["cache", "export", exported, "--root", root]) == {"new": asked, "known": 0, "damaged": 0}
    assert cli.json(["cache", "import", exported, "--root", other])["new"] == asked
    assert cli(["cache", "import", exported, "--root", other]).out == f"new: 0\nknown: {asked}\ndamaged: 0\n"
    # One of answers, one of filter results.
    assert cli.json(["cache", "compact", "--root", root])["parts now"] == 2
    stats = cli.json(["cache", "stats", "--root", root])
    assert (stats["keys"], stats["segments"], stats["damaged"]) == (asked, 1, 0)
    assert cli(["cache", "stats", "--root", other]).out.startswith(f"rows: {asked}\nkeys: {asked}\n")
    for part in Path(other, "cache", "segments").glob("*.parquet"):
        os.truncate(part, 100)
    assert "damaged: 1\n" in cli(["cache", "import", f"{other}/cache", "--root", f"{other}-again"], code=1).out


def test_the_json_has_everything_under_stable_names(openai_server: OpenAIServer, config: Path, cli: Any) -> None:
    answer(openai_server, "a child", "!")
    document: dict[str, Any] = json.loads(shown(cli, config, "a kid on a swing", "--json")[0])
    assert list(document) == ["captions", "facts", "metrics"]
    assert (document["metrics"]["engine"], document["metrics"]["generated"]) == ("openai", 2)
    (caption,) = document["captions"]
    assert list(caption) == ["caption", "left_out", "attempts"]
    assert caption["attempts"][0] == {
        "step": 1,
        "input": "a kid on a swing",
        "answers": [{"raw": "a child", "parsed": "a child"}, {"raw": "!", "parsed": "!"}],
        "kept": ["a child"],
        "reason": None,
        "detail": "",
    }


def test_hostile_captions_and_answers_are_shown_as_text(openai_server: OpenAIServer, config: Path, cli: Any) -> None:
    attacks = [json.loads(line) for line in ATTACKS.read_text("utf-8").splitlines()]
    obeyed = attacks[0]["obeyed"][0]
    openai_server.answer = lambda asked: reply(f"\x1b[2J\u202e[red]{words_of(asked)}[/] {obeyed}")
    captions = [attack["text"] for attack in attacks[::3] if "\0" not in attack["text"]]
    for more in ([], ["--json"]):
        out, err = shown(cli, config, *more, "--", *captions)
        steering = {char for char in out + err if unicodedata.category(char) == "Cc"} - {"\n", "\t"}
        assert not steering and "\u202e" not in out + err
        assert "[red]" in out


def test_what_cannot_be_tried_is_said(openai_server: OpenAIServer, config: Path, cli: Any) -> None:
    assert "CAPTION" in shown(cli, config, code=2)[1]
    openai_server.stop()
    assert "cannot be reached" in shown(cli, config, "a kid on a swing", code=1)[1]
    assert openai_server.asked == []


def test_requests_go_out_and_come_back(config: Path, tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "captions.txt").write_text("a red dog on a beach\na cat on a mat\n")
    options = ["-c", str(config), "--set", "data.sources.0.path=captions.txt"]
    assert "has an image" in cli(["requests", "export", "ask.jsonl", *options], code=1).err
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,a red dog on a beach\nb.jpg,a cat on a mat\n")
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    prices = ["--set", "paraphrase.openai.price_per_million_prompt_tokens=1000"]
    options = ["-c", str(config), "--set", "data.sources=[{path: captions.csv, images: .}]", *prices]
    exported = cli.json(["requests", "export", "ask.jsonl", *options])
    assert [exported[name] for name in ("step_1", "step_2", "requests", "unanswered_1")] == [2, 0, 2, 2]
    lines = []
    for line in (tmp_path / "ask.jsonl").read_text().splitlines():
        name = json.loads(line)["custom_id"]
        body = reply(f"\x1b[31mone {name}") | {"usage": {"prompt_tokens": 100, "completion_tokens": 7}}
        lines.append(json.dumps({"custom_id": name, "response": {"body": body}}) + "\n")
    (tmp_path / "back.jsonl").write_text("".join([*lines, '{"custom_id": "\\u001b[2J"}\n']))
    out = cli(["requests", "import", "back.jsonl", *options]).out
    assert "new: 2\n" in out and "unknown_request: 1\n" in out and "spend: 0.2\n" in out and "\x1b" not in out
    assert cli.json(["requests", "export", "ask.jsonl", *options])["step_2"] == 2
    own = ["--set", "paraphrase.engine=file", "--set", "paraphrase.file.path=captions.txt"]
    assert "engine=file makes no requests" in cli(["requests", "export", "ask.jsonl", *options, *own], code=2).err
    assert "does not exist" in cli(["requests", "import", "none.jsonl", *options], code=2).err
    assert "none of the 2 lines" in cli(["requests", "import", "captions.txt", *options], code=1).err
