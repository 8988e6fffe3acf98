"""Small runs of the real stages over captions in a text file, in this process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from paraclip.storage.artifacts import Artifact
from paraclip.tasks.run.execute import STAGES, run_stage
from paraclip.tasks.run.run import Run
from paraclip_core.config import Settings
from paraclip_core.settings import parse_settings

HERE = {name: replace(stage, isolated=False) for name, stage in STAGES.items()}
"""The stages in this process, which saves starting one for each."""


def settings_of_texts(
    folder: Path, captions: Iterable[str], paraphrase: dict[str, Any], root: str = "root", **run: Any
) -> Settings:
    """Settings for these captions, which are written to a file; only paraphrasing is set."""
    (folder / "captions.txt").write_text("".join(f"{caption}\n" for caption in captions))
    data = {"root": str(folder), "sources": [{"path": "captions.txt"}]}
    run = {"root": str(folder / root), "threads": 1, **run}
    return parse_settings({"data": data, "paraphrase": paraphrase, "run": run})


def made(name: str, settings: Settings) -> Artifact:
    """A stage's artifact, found or made here."""
    return run_stage(name, Run(settings, stages=HERE))


def both_steps(settings: Settings) -> tuple[Artifact, Artifact]:
    """Both steps of paraphrasing, after ingest."""
    _, first, second = (made(name, settings) for name in ("ingest", "paraphrase_1", "paraphrase_2"))
    return first, second


def contents(artifact: Artifact) -> dict[str, str]:
    """The files of an artifact and their SHA-256."""
    return {name: entry.sha256 for name, entry in artifact.manifest.files.items()}
