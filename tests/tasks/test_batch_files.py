"""Batch files: what a run would ask leaves as JSONL, comes back answered, and is never asked again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from paraclip.storage.answers import AnswerStore
from paraclip.storage.parquet import read_table
from paraclip.storage.roots import open_store
from paraclip.tasks.batch_files import Exported, Imported, export_requests, import_answers
from paraclip.tasks.run.run import Run
from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError, InputError
from paraclip_core.tables import REJECTS
from tests.kit.openai_server import OpenAIServer, reply, well
from tests.kit.small_runs import both_steps, contents, settings_of_texts

CAPTIONS = [f"a red dog with number {n} on a beach" for n in range(12)]
PAPER = {"engine": "openai", "model": "smol", "prompts": "paper"}
NOWHERE = "http://127.0.0.1:9/v1"

Body = dict[str, Any]


def settings_of(folder: Path, captions: list[str] = CAPTIONS, root: str = "root", **paraphrase: Any) -> Settings:
    openai = {"base_url": NOWHERE, "api_key_env": "NO_KEY", "retries": 0} | paraphrase.pop("openai", {})
    return settings_of_texts(folder, captions, {**PAPER, "sampling": {"n": 2}, "openai": openai, **paraphrase}, root)


OFF: dict[str, Any] = {"filters": {"preset": "off"}}


def export(settings: Settings, path: Path) -> tuple[Exported, dict[str, Body]]:
    """The counts, and key → body of what the file asks."""
    exported = export_requests(Run(settings, open_store(settings.run.root)), path)
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert all(line["method"] == "POST" and line["url"] == "/v1/chat/completions" for line in lines)
    bodies = {line["custom_id"]: line["body"] for line in lines}
    assert len(bodies) == len(lines) == exported.requests
    return exported, bodies


def answered(
    bodies: dict[str, Body], path: Path, answer: Callable[[Body], Body] = well, lines: Iterable[str] = ()
) -> Path:
    """A batch's output file, in an order of its own, with other lines behind."""
    content = [
        json.dumps(
            {"id": "x", "custom_id": key, "response": {"status_code": 200, "body": answer(body)}, "error": None},
            ensure_ascii=False,
        )
        for key, body in sorted(bodies.items())
    ]
    path.write_text("".join(f"{line}\n" for line in (*content, *lines)), "utf-8", errors="surrogatepass")
    return path


def take_back(settings: Settings, *paths: Path) -> Imported:
    return import_answers(Run(settings, open_store(settings.run.root)), paths)


def says(*texts: str) -> Callable[[Body], Body]:
    return lambda body: reply(*texts)


def both_ways(settings: Settings, folder: Path, answer: Callable[[Body], Body] = well) -> list[dict[str, Body]]:
    """Export and import for each step; the bodies of both."""
    asked = []
    for number in (1, 2):
        _, bodies = export(settings, folder / f"ask-{number}.jsonl")
        asked.append(bodies)
        assert take_back(settings, answered(bodies, folder / f"back-{number}.jsonl", answer)).new == len(bodies)
    return asked


def test_a_run_after_the_way_there_and_back_asks_nothing_and_writes_the_same(
    openai_server: OpenAIServer, tmp_path: Path
) -> None:
    extra: Body = {"openai": {"base_url": openai_server.url, "extra_body": {"reasoning_effort": "low"}}}
    served = both_steps(settings_of(tmp_path, root="served", **OFF, **extra))
    sent = list(openai_server.asked)
    openai_server.asked.clear()

    settings = settings_of(tmp_path, root="batches", **OFF, **extra)
    asked = both_ways(settings, tmp_path)
    assert [len(bodies) for bodies in asked] == [12, 12]
    # The bodies are the engine's own, seeds included.
    key = json.dumps
    assert sorted(map(key, sent)) == sorted(key(body) for bodies in asked for body in bodies.values())
    assert export(settings, tmp_path / "rest.jsonl")[0].requests == 0
    assert (tmp_path / "rest.jsonl").read_bytes() == b""

    batches = both_steps(settings)
    assert openai_server.asked == []
    assert [artifact.manifest.metrics["generated"] for artifact in batches] == [0, 0]
    assert [contents(artifact) for artifact in batches] == [contents(artifact) for artifact in served]
    assert export(settings, tmp_path / "rest.jsonl")[0].requests == 0


def test_importing_twice_adds_nothing_and_what_was_imported_counts_as_paid(tmp_path: Path) -> None:
    prices: Body = {"price_per_million_prompt_tokens": 100_000, "price_per_million_completion_tokens": 200_000}
    settings = settings_of(tmp_path, openai=prices, **OFF)
    exported, bodies = export(settings, tmp_path / "ask.jsonl")
    assert (exported.step_1, exported.step_2, exported.unanswered_1) == (12, 0, 12)
    back = answered(bodies, tmp_path / "back.jsonl")
    first = take_back(settings, back, back)
    assert (first.lines, first.new, first.answered, first.rejected) == (24, 12, 12, {})
    assert (first.prompt_tokens, first.completion_tokens, first.spend) == (120, 120, 36)
    assert (take_back(settings, back).new, take_back(settings, back).answered) == (0, 12)
    cache = AnswerStore(tmp_path / "root" / "cache")
    assert (cache.stats().rows, cache.stats().keys) == (12, 12)
    assert cache.paid_tokens("openai", "smol") == (120, 120)
    assert not (tmp_path / "back.jsonl.rejects.parquet").exists()


def test_lines_of_no_use_are_rejected_by_reason_and_the_others_kept(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, **OFF)
    _, bodies = export(settings, tmp_path / "ask.jsonl")
    keys = sorted(bodies)
    failed = {"custom_id": keys[0], "response": None, "error": {"code": "batch_expired", "message": "too late"}}
    stranger = {"custom_id": "0" * 32, "response": {"status_code": 200, "body": says("paid for")({})}}
    declined = {"custom_id": keys[1], "response": {"status_code": 400}, "error": {"error": {"code": "content_filter"}}}
    others = {key: bodies[key] for key in keys[2:]}
    more = [*map(json.dumps, (failed, stranger, declined)), '{"custom_id": ', (tmp_path / "ask.jsonl").read_text()]
    back = answered(others, tmp_path / "back.jsonl", says("one of two"), more)
    imported = take_back(settings, back)
    assert (imported.lines, imported.new, imported.declined) == (26, 11, 1)
    assert imported.rejected == {"bad_json": 1, "failed": 1, "no_response": 12, "unknown_request": 1}
    assert imported.rejects == [f"{back}.rejects.parquet"]
    table = pq.read_table(imported.rejects[0])
    assert table.schema.equals(REJECTS)
    rows = table.to_pylist()
    assert [(row["source"], row["source_row"], row["reason"]) for row in rows[:3]] == [
        ("back.jsonl", 11, "failed"),
        ("back.jsonl", 12, "unknown_request"),
        ("back.jsonl", 14, "bad_json"),
    ]
    assert "too late" in rows[0]["detail"] and "paid for" in rows[1]["caption_raw"]
    # What failed is asked again, what was declined is not.
    assert keys[0] in (asked := export(settings, tmp_path / "ask.jsonl")[1]) and not set(keys[1:]) & set(asked)
    # The rejects of earlier imports go with their reasons.
    good = answered({keys[0]: bodies[keys[0]]}, back)
    assert take_back(settings, good).new == 1
    assert not Path(imported.rejects[0]).exists()


def test_a_killed_import_loses_nothing_and_keeps_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(tmp_path, **OFF)
    _, bodies = export(settings, tmp_path / "ask.jsonl")
    back = answered(bodies, tmp_path / "back.jsonl")
    monkeypatch.setattr("paraclip.tasks.batch_files.BLOCK_LINES", 5)
    append, left = AnswerStore.append, [1]

    def dying(self: AnswerStore, generations: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        append(self, generations)

    monkeypatch.setattr(AnswerStore, "append", dying)
    with pytest.raises(KeyboardInterrupt):
        take_back(settings, back)
    left[0] = 99
    imported = take_back(settings, back)
    assert (imported.new, imported.answered) == (7, 5)
    stats = AnswerStore(tmp_path / "root" / "cache").stats()
    assert (stats.rows, stats.keys) == (12, 12)


def test_step_2_and_further_attempts_follow_from_what_is_judged(tmp_path: Path) -> None:
    # What is empty or a copy is rejected.
    filters = {"preset": "off", "extra": ["tests.kit.scripted_filters:copy"]}
    settings = settings_of(tmp_path, attempts=2, filters=filters)
    _, bodies = export(settings, tmp_path / "ask.jsonl")

    def some(body: Body) -> Body:
        caption = body["messages"][-1]["content"].split('"')[1]
        good = int(caption.split()[5]) < 5
        return says("", f"On a beach there is {caption}" if good else caption)(body)

    take_back(settings, answered(bodies, tmp_path / "back.jsonl", some))
    exported, more = export(settings, tmp_path / "more.jsonl")
    # Five go on to step 2, the others to the second attempt with other draws.
    assert (exported.step_1, exported.step_2, exported.unanswered_1) == (7, 5, 7)
    asked = [body["messages"][-1]["content"] for body in more.values()]
    assert sum(text.startswith('Paraphrase the given text "On a beach there is a red dog') for text in asked) == 5
    seeds = {body["messages"][-1]["content"]: body["seed"] for body in bodies.values()}
    again = [body for body in more.values() if body["messages"][-1]["content"] in seeds]
    assert len(again) == 7 and all(body["seed"] != seeds[body["messages"][-1]["content"]] for body in again)
    # Step 1 has no attempt left, and step 2 another one.
    take_back(settings, answered(more, tmp_path / "back.jsonl", says("")))
    exported, last = export(settings, tmp_path / "last.jsonl")
    assert (exported.step_1, exported.step_2) == (0, 5)
    assert not set(last) & set(more)
    take_back(settings, answered(last, tmp_path / "back.jsonl", says("")))
    assert export(settings, tmp_path / "rest.jsonl")[0].requests == 0


def test_answers_are_filed_under_the_engine_of_the_configuration(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, engine="vllm", model="org/name", sampling={"temperature": 0, "n": 4}, **OFF)
    exported, bodies = export(settings, tmp_path / "ask.jsonl")
    assert exported.model == "org/name"
    assert all(body["model"] == "org/name" and "n" not in body for body in bodies.values())
    # A prompt whose tokens nobody counted is estimated.
    fine: Body = {"choices": says("fine")({})["choices"]}
    imported = take_back(settings, answered(bodies, tmp_path / "back.jsonl", lambda _: fine))
    assert 12 * 20 < imported.prompt_tokens < 12 * 80
    table = read_table(tmp_path / "root" / "cache" / "segments")
    assert set(table.column("engine").to_pylist()) == {"vllm"}
    assert set(table.column("model").to_pylist()) == {"org/name@main"}
    assert export(settings, tmp_path / "ask.jsonl")[0].step_1 == 0
    # Another engine would ask all the same.
    assert export(settings_of(tmp_path, **OFF), tmp_path / "ask.jsonl")[0].step_1 == 12


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    settings, ask = settings_of(tmp_path, **OFF), tmp_path / "ask.jsonl"
    with pytest.raises(ConfigError, match=r"has no paraphrase\.model"):
        export(settings_of(tmp_path, engine="openvino", model=""), ask)
    export(settings, ask)
    with pytest.raises(InputError, match=r"none of the 12 lines of ask\.jsonl .*no_response 12.*came back"):
        take_back(settings, ask)
    (tmp_path / "no.jsonl").write_text("hello\n")
    with pytest.raises(InputError, match="bad_json 1"):
        take_back(settings, tmp_path / "no.jsonl")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    assert take_back(settings, tmp_path / "empty.jsonl") == Imported()
    (tmp_path / "captions.txt").unlink()
    with pytest.raises(InputError, match=r"captions\.txt"):
        export(settings, ask)
