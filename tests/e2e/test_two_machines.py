"""Two machines with networks, processes and clocks of their own, and a real S3 server between them.

The language model is beside that server, so a machine that is cut off has neither.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from paraclip.storage.locks import DEAD_SECONDS
from tests.kit.netns import ADDRESS, Machine, machines, obstacle
from tests.kit.openai_server import OpenAIServer
from tests.kit.s3_server import bucket
from tests.kit.tiny_run import served, written
from tests.kit.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(1800)]

CAPTIONS, CHUNK = 120, 4
STAGE = """
import json, sys, time
from paraclip_core.settings import parse_settings
from paraclip.tasks.run.execute import Run, run_stage
run = Run(parse_settings(json.loads(sys.argv[1])))
print("starts", flush=True)
for name in ("ingest", "paraphrase_1"):
    manifest = run_stage(name, run).manifest
print(json.dumps({name: entry.sha256 for name, entry in manifest.files.items()}), flush=True)
"""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Mapping[str, Machine]]:
    if reason := obstacle():
        pytest.skip(reason)
    with machines(tmp_path, ("one", "two")) as pair:
        yield pair


@pytest.fixture
def model(pair: Mapping[str, Machine]) -> Iterator[OpenAIServer]:
    """A server on their network that takes a third of a second to answer."""

    def slow(asked: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.3)
        return written(asked)

    with OpenAIServer(ADDRESS) as server:
        server.answer = slow
        yield server


@pytest.fixture
def settings(
    pair: Mapping[str, Machine], model: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A run over some captions whose root is on an S3 server."""
    lines = (json.dumps({"caption": f"a dog on lawn number {number}"}) + "\n" for number in range(CAPTIONS))
    (tmp_path / "captions.jsonl").write_text("".join(lines))
    data = {"root": str(tmp_path), "sources": [{"path": "captions.jsonl"}]}
    paraphrase = {**served(model.url), "chunk": CHUNK, "fraction": 1.0}
    with bucket(monkeypatch, ADDRESS) as name:
        yield json.dumps({"run": {"root": f"{name}/root"}, "data": data, "paraphrase": paraphrase})


def files(machine: subprocess.Popen[str]) -> dict[str, str]:
    """Hashes of what a machine made or found, once it has ended well."""
    output = machine.communicate(timeout=900)[0]
    assert machine.returncode == 0, output
    return json.loads(output.strip().rpartition("\n")[2])


def twice(model: OpenAIServer) -> int:
    """Requests that were answered, and so paid for, more than once."""
    return sum(count - 1 for count in model.answered.values())


def under_way(machine: Machine, settings: str, model: OpenAIServer) -> subprocess.Popen[str]:
    process = machine.start(STAGE, settings)
    eventually(lambda: len(model.answered) > CAPTIONS // 4 or process.poll() is not None, "nothing is asked", 300)
    assert process.poll() is None, process.communicate()[0]
    return process


def test_a_machine_that_is_cut_off_is_succeeded_and_joins_again(
    pair: Mapping[str, Machine], settings: str, model: OpenAIServer, record_property: Callable[[str, object], None]
) -> None:
    one = under_way(pair["one"], settings, model)
    pair["one"].cut_off()
    start = time.monotonic()
    two = pair["two"].start(STAGE, settings)
    contents = files(two)
    seconds = time.monotonic() - start
    assert seconds > DEAD_SECONDS, "a living machine would have been waited for"
    record_property("cut off: seconds until another has finished", round(seconds))
    record_property("cut off: requests paid twice", twice(model))
    pair["one"].join_again()
    output = one.communicate(timeout=900)[0]
    record_property("cut off: its own end", f"{one.returncode}: {output.strip()[-200:]}")
    # Whether it had given up or went on: what it has in the end is what the other one made.
    assert files(pair["one"].start(STAGE, settings)) == contents
    # The chunk that was under way when it was cut off, and the one that it asked for before it heard of the other.
    assert len(model.answered) == CAPTIONS and twice(model) <= 2 * CHUNK


def test_a_lost_machine_is_succeeded(
    pair: Mapping[str, Machine], settings: str, model: OpenAIServer, record_property: Callable[[str, object], None]
) -> None:
    one = under_way(pair["one"], settings, model)
    one.kill()
    one.communicate()
    shutil.rmtree(pair["one"].folder)
    start = time.monotonic()
    files(pair["two"].start(STAGE, settings))
    record_property("lost: seconds until another has finished", round(time.monotonic() - start))
    record_property("lost: requests paid twice", twice(model))
    assert len(model.answered) == CAPTIONS and twice(model) <= CHUNK


def test_clocks_ten_minutes_apart_take_nothing_from_a_living_machine(
    pair: Mapping[str, Machine], settings: str, model: OpenAIServer
) -> None:
    one = under_way(pair["one"], settings, model)
    two = pair["two"].start(STAGE, settings, clock="+10m")
    assert one.poll() is None, "one had ended before"
    assert files(one) == files(two)
    assert len(model.answered) == CAPTIONS and twice(model) == 0
