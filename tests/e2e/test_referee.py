"""The bytes of every stage, held: a change that means to change nothing is seen to change nothing.

    python tests/e2e/test_referee.py tiny | demo

renews `tests/data/referee.json` after a change that was meant. Trained weights and answers of the embedded model are
the same bytes on processors of one kind only, so they are compared where the file's processor is this one.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

SERVERS = Path(__file__).parents[1] / "servers"
sys.path.insert(0, str(SERVERS))

from openai_server import OpenAIServer  # noqa: E402  # pyright: ignore[reportMissingImports]  # found by the line above
from tiny_run import served, tiny_run, written  # noqa: E402  # pyright: ignore[reportMissingImports]  # as above

from paraclip.tasks.run.dag import run_stage  # noqa: E402  # as above
from paraclip.tasks.run.run import Run  # noqa: E402  # as above
from paraclip_core.settings import load_settings, parse_settings  # noqa: E402  # as above

HELD = Path(__file__).parents[1] / "data" / "referee.json"
CONTENT = {".parquet", ".npy", ".npz", ".safetensors", ".tar", ".jsonl"}
"""Files with a stage's output. Cards, pages and manifests name versions and options, which may change."""
COMPUTED = ("paraphrase_1", "paraphrase_2", "features", "bootstrap", "finetune", "control", "evaluate")
"""Stages whose bytes depend on the processor; `paraphrase_*` only with the embedded language model."""


def processor() -> str:
    """What rounds: the instruction set and torch's version."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} torch {torch.__version__.partition('+')[0]}"


def contents(run: Run) -> dict[str, dict[str, str]]:
    """sha256 of each file with content, by stage and path; every stage is run if it is not finished."""
    digests = {}
    for name in run.stages:
        folder = run_stage(name, run).path
        paths = sorted(path for path in folder.rglob("*") if path.suffix in CONTENT)
        digests[name] = {str(path.relative_to(folder)): _digest(path) for path in paths}
    return {name: files for name, files in digests.items() if files}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tiny(root: Path) -> Run:
    """A run of every stage, asked of a server that answers at once."""
    with OpenAIServer() as server:
        server.answer = written
        tree: dict[str, Any] = tiny_run(root, served(server.url))
        tree["evaluate"]["control"] = True
        run = Run(parse_settings(tree))
        contents(run)
    return run


def demo(root: Path) -> Run:
    """The demo, as `make demo` runs it."""
    return Run(load_settings("demo", [f"run.root={root}", "run.threads=2"]))


RUNS: dict[str, Callable[[Path], Run]] = {"tiny": tiny, "demo": demo}


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", pytest.param("demo", marks=pytest.mark.nightly)])
def test_every_stage_has_the_bytes_that_are_held(name: str, tmp_path: Path, finished: Any) -> None:
    held = json.loads(HELD.read_text())[name]
    digests = contents(Run(parse_settings(finished.settings)) if name == "tiny" else demo(tmp_path))
    assert list(digests) == list(held["stages"])
    rounded = () if held["processor"] == processor() else COMPUTED
    for stage, files in digests.items():
        if stage not in rounded:
            assert files == held["stages"][stage], f"{stage} has other bytes"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        record = {"processor": processor(), "stages": contents(RUNS[sys.argv[1]](Path(folder)))}
    kept = json.loads(HELD.read_text()) if HELD.exists() else {}
    HELD.write_text(json.dumps(kept | {sys.argv[1]: record}, indent=1) + "\n")
