"""Every command in a `bash` block of README and docs/ is run, page by page, in a folder as its reader has it.

The pages share the folder: what README trains and exports, other pages search, promote, deploy and roll back. Small
models stand in for those that a page names, and a few options make the runs short.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paraclip.flows.cli import app
from paraclip.storage.features import FeatureStore
from paraclip_core.settings import parse_settings
from tests.kit.openai_server import OpenAIServer, reply, words_of
from tests.kit.processes import free_port
from tests.kit.small_runs import made
from tests.kit.tiny_run import tiny_run
from tests.test_docs import REPOSITORY, SHELL, TESTED, USER_PAGES, code, commands

FIRST = ("index-and-queries", "README", "tutorial", "own-captions", "search", "operate", "serving-elsewhere")
"""Pages whose configuration, models or deployments later ones need."""
DAILY = FIRST[:3]
"""Pages of which every test run sees the commands; the others, which take minutes each, are for the nightly suite."""
WITH_COMMANDS = [page for page in USER_PAGES if any(language == "bash" for language, _ in code(page))]
PAGES = sorted(
    WITH_COMMANDS, key=lambda page: (FIRST.index(page.stem) if page.stem in FIRST else len(FIRST), page.name)
)
ELSEWHERE = TESTED | {
    "make": "Makefile",
    ".venv/bin/python -m pytest": "Makefile",
    "python benchmarks/gpu_acceptance.py": "tests/benchmarks/test_gpu_acceptance.py",
    "paraclip demo": "tests/e2e/test_referee.py",
    "prefect automation create": "tests/kit/receiver.py",
    "paraclip serve": "tests/kit/served.py",
}
"""Beginnings of commands that other tests run, and where they do."""
SERVES = {"paraclip ui": "http://127", "prefect worker start": "started!"}
"""Beginnings of commands that do not end, and what they say when they are ready."""
STAND_INS = {
    "ViT-B-32:laion2b_s34b_b79k": "local-dir:base",
    "old-model": "local-dir:base",
    "flickr8k": "mine",
    "A": "local-dir:base",
    "B": "local-dir:my-model",
    "C": "local-dir:my-model",
    "DIR": "my-data/photos",
    "DIR/1.png": "my-data/photos/scene-000000.jpg",
    "DIR/images_128.tar": "my-data/photos",
    "coco/val2017": "my-data/photos",
}
NAMES = re.compile(rf"(?:^|(?<=[=:]))({'|'.join(map(re.escape, STAND_INS))})$")
PROMOTED = {"README": "paraclip.yaml", "operate": "photos.yaml", "nightly": "photos.yaml"}
"""Before these pages `production` moves to the model of a configuration; those after README roll it back."""
SMALL = (
    "finetune.recipe=ranking", "finetune.learning_rate=1e-3", "finetune.epochs=2", "finetune.batch_size=8",
    "finetune.precision=fp32", "finetune.alpha={grid: [1.0]}", "paraphrase.filters.preset=off", "run.threads=1",
    "built_in_base.epochs=2",
)  # fmt: skip
CALLS = """
import json, sys
from paraclip.flows.cli import run_cli
from paraclip.tasks.run import execute
if "here" in sys.argv[2:]:
    execute.run_in_child = lambda draft, run, *more: execute.execute(run.stages[draft.stage], draft, run, *more)
for words in json.loads(sys.argv[1]):
    print("$ paraclip", *words, flush=True)
    ended = run_cli(words)
    if ended != (3 if "--require-work" in words else 0):
        sys.exit(f"ended with {ended}")
"""
"""Calls the command line in one process; with `here`, its stages share it, which saves starting one for each."""
ISOLATED = ("README",)
"""Pages whose stages have processes of their own, as their reader's have."""
RUN_IN_PYTHON = ("README", "search")
"""Pages whose Python is run here, too; that of others is run by the tests of its subject."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with captioned photographs, a model and its index of them, queries and pairs."""
    home = tmp_path_factory.mktemp("reader")
    scenes = parse_settings(tiny_run(home / "made", {"engine": "tests.kit.scripted_engine:Well", "model": "m"}))
    artifacts = {name: made(name, scenes) for name in ("ingest", "features", "built_in_base")}
    shutil.copytree(artifacts["built_in_base"].path / "release", home / "base")
    with tarfile.open(Path(scenes.data.root) / "images.tar") as tar:
        tar.extractall(home / "my-data", filter="data")
    (home / "my-data" / "images").rename(home / "my-data" / "photos")
    lines = (Path(scenes.data.root) / "captions.jsonl").read_text().splitlines()
    rows = [(row["caption"], Path(row["image"]).name, row["split"]) for row in map(json.loads, lines)]
    table(home / "my-data" / "captions.csv", ("caption", "image", "split"), rows)
    store = FeatureStore(artifacts["features"].path)
    np.save(home / "index.npy", np.asarray(store.view()[np.arange(len(store))], np.float32))
    (home / "ids.txt").write_text("\n".join(f"{name}.jpg" for name in store.image_ids))
    table(home / "log.csv", ("query", "image", "count"), [(*row[:2], 2) for row in rows])
    captions = [row[0] for row in rows[:8]]
    table(home / "queries.csv", ("query", "paraphrased_query"), zip(captions[::2], captions[1::2], strict=True))
    (home / "queries.txt").write_text("\n".join(captions))
    (home / "other.yaml").write_text(
        "{name: other, data: {root: my-data, sources: [{path: captions.csv, images: photos}]}}"
    )
    (home / "names.txt").write_text(rows[0][1])
    pairs = list(pairwise(captions))
    table(home / "pairs.csv", ("query", "paraphrased_query"), pairs)
    (home / "sts").mkdir()
    for name in ("sts/STSB-test.tsv", "mine.tsv"):
        scored = [(number % 2, *pair) for number, pair in enumerate(pairs)]
        table(home / name, ("score", "sentence1", "sentence2"), scored, "\t")
    (home / "scpp" / "data").mkdir(parents=True)
    texts = dict(zip(("caption", "caption2", "negative_caption"), captions, strict=False))
    cases = [{"filename": image, **texts} for image in (rows[0][1], rows[-1][1])]
    (home / "scpp" / "data" / "swap_att.json").write_text(json.dumps(cases))
    return home


def table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], delimiter: str = ",") -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])


@pytest.fixture(scope="module")
def language_model() -> Iterator[OpenAIServer]:
    """A server whose answer is the caption in other words."""

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        text = re.sub(r'^.*?"|"[^"]*$', "", words_of(asked))
        return reply(*(f"one sees {text} {number}" for number in range(asked.get("n", 1))))

    with OpenAIServer() as server:
        server.models, server.answer = [{"id": "smol"}], answer
        yield server


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.pages if page.stem in DAILY else pytest.mark.nightly) for page in PAGES],
    ids=lambda page: page.stem,
)
def test_the_commands_of_a_page_run(
    page: Path, home: Path, prefect: str, language_model: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    for name, value in {
        "PARACLIP_ROOT": str(home / "runs"),
        "OPENAI_BASE_URL": language_model.url,
        "OPENAI_API_KEY": "key",
        "PREFECT_API_URL": prefect,
    }.items():
        monkeypatch.setenv(name, value)
    lines = [words for words in commands_of(page) if words[0] not in SHELL and not elsewhere(" ".join(words))]
    if page.stem in PROMOTED:
        lines.insert(0, ["paraclip", "promote", "-c", PROMOTED[page.stem]])
    # The command line of paraclip is started once for all commands in a row: starting takes longer than most of them.
    for together, group in groupby(lines, lambda words: words[0] == "paraclip" and not served(words)):
        if together:
            calls = json.dumps([completed(words[1:]) for words in group])
            execute([sys.executable, "-c", CALLS, calls, *([] if page.stem in ISOLATED else ["here"])])
            continue
        for words in group:
            execute(process(words), served(words))


def commands_of(page: Path) -> Iterator[list[str]]:
    """The words of a page's commands, with what stands in for others' models, and a process for each Python block."""
    for language, text in code(page):
        if language == "bash":
            yield from (list(map(stood_in, words)) for words in commands(text))
        if language == "python" and page.stem in RUN_IN_PYTHON:
            text = re.sub(r'(?<=")[^"]+(?=")', lambda quoted: stood_in(quoted[0]), text)
            yield ["python", "-c", text.replace('"paraclip.yaml")', f'"paraclip.yaml", {SMALL})')]


def stood_in(word: str) -> str:
    """The word, or what stands in for it; `3f9c` begins the fingerprint of a model that `production` has served."""
    if word == "3f9c":
        return json.loads(Path("runs/results/photos/summary.json").read_text())["fingerprints"]["finetune"][:4]
    return NAMES.sub(lambda at: STAND_INS[at[0]], word)


def elsewhere(line: str) -> bool:
    """Whether another test runs the command, whose file names it."""
    for start, file in ELSEWHERE.items():
        if line.startswith(start):
            assert start.split()[-1].removeprefix("benchmarks/") in (REPOSITORY / file).read_text(), line
            return True
    return False


def served(words: list[str]) -> str | None:
    """What a command says when it is ready, if it serves until it is ended."""
    return next((ready for start, ready in SERVES.items() if " ".join(words).startswith(start)), None)


def process(words: list[str]) -> list[str]:
    """A command as the process that runs it here."""
    program, *rest = words
    if program == "paraclip":
        return [sys.executable, "-m", "paraclip.flows.cli", *completed(rest)]
    return [sys.executable, *(["-m", program] if program == "prefect" else []), *rest]


def completed(words: list[str]) -> list[str]:
    """The words of a command of paraclip, and what makes its run small; `init` overwrites other pages' file."""
    command = app
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    command = command if command is app else command.load()
    options = {option for parameter in command.params for option in parameter.opts}
    more = {"init": ["--force"], "promote": ["--force"], "ui": ["--port", str(free_port())]}.get(words[0], [])
    if "-c" in words and "--set" in options:
        more += [part for each in SMALL for part in ("--set", each)]
    return [*words, *more]


def execute(command: list[str], ready: str | None = None) -> None:
    """Run a command to its end, or if it serves, until it says that it is ready."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        output = ""
        for line in process.stdout:
            output += line
            if ready is not None and ready in line:
                process.terminate()
        ended = process.wait(60)
    assert ready in output if ready is not None else ended == 0, output[-6000:]
