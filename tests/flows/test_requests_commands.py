"""`paraclip requests`: what export and import say, count and end with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openai_server import reply  # pyright: ignore[reportMissingImports]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PARACLIP_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "captions.txt").write_text("a red dog on a beach\na cat on a mat\n")
    content = {
        "run": {"root": str(tmp_path / "root")},
        "data": {"root": str(tmp_path), "sources": [{"path": "captions.txt"}]},
        "paraphrase": {
            "engine": "openai",
            "model": "smol",
            "prompts": "paper",
            "gates": {"preset": "off"},
            "openai": {"price_per_million_prompt_tokens": 1000},
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(content))
    return path


def command(cli: Any, config: Path, *arguments: str, code: int = 0) -> str:
    return "".join(cli(["requests", *arguments, "-c", str(config)], code))


def answer(asked: Path, target: Path, more: str = "") -> None:
    lines = []
    for line in asked.read_text().splitlines():
        name = json.loads(line)["custom_id"]
        body = reply(f"\x1b[31mone {name}") | {"usage": {"prompt_tokens": 100, "completion_tokens": 7}}
        lines.append(json.dumps({"custom_id": name, "response": {"body": body}}) + "\n")
    target.write_text("".join(lines) + more)


def test_the_way_there_and_back(config: Path, tmp_path: Path, cli: Any) -> None:
    out = command(cli, config, "export", "ask.jsonl")
    assert "2 requests (2 of step 1, 0 of step 2) to smol in ask.jsonl" in out and "when these are imported" in out
    answer(tmp_path / "ask.jsonl", tmp_path / "back.jsonl", '{"custom_id": "\\u001b[2J"}\n')
    out = command(cli, config, "import", "back.jsonl", "back.jsonl")
    assert "2 answers of 6 lines are in the cache now" in out and "2 were answered before" in out
    assert "200 prompt tokens and 14 answered ones, which cost 0.2" in out
    assert "2 lines are of no use (unknown_request 2), see back.jsonl.rejects.parquet" in out
    assert "\x1b" not in out
    imported = cli.json(["requests", "import", "back.jsonl", "-c", str(config)])
    assert (imported["new"], imported["answered"], imported["rejected"]) == (0, 2, {"unknown_request": 1})

    exported = cli.json(["requests", "export", "ask.jsonl", "-c", str(config)])
    assert (exported["step_1"], exported["step_2"], exported["requests"]) == (0, 2, 2)
    (tmp_path / "ask.jsonl").write_bytes(b"")
    out = command(cli, config, "import", "ask.jsonl")
    assert "0 answers of 0 lines" in out


def test_errors_end_with_their_codes(config: Path, tmp_path: Path, cli: Any) -> None:
    own = ("--set", "paraphrase.engine=file", "--set", "paraphrase.file.path=captions.txt")
    assert "engine=file" in command(cli, config, "export", "ask.jsonl", *own, code=2)
    assert "does not exist" in command(cli, config, "import", "none.jsonl", code=2)
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    out = command(cli, config, "import", "image.png", code=1)
    assert "none of the 3 lines of image.png answers a request of this configuration (bad_json 3" in out
