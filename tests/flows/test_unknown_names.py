"""One rule for every command: a name, root, folder or file on the command line that is not there is wrong usage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paraclip.flows.cli import COMMANDS

UNKNOWN = {
    "demo": ["--set nonsense=1", "--device nonsense"],
    "init": ["ABSENT", "FILE", "FOLDER --captions ABSENT", "FOLDER --images ABSENT", "FOLDER --base ViT-B-33:openai"],
    "run": ["-c ABSENT", "--set nonsense=1"],
    "plan": [
        "-c ABSENT",
        "--set nonsense=1",
        "-c CONFIG --device nonsense",
    ],
    "paraphrase": ["a -c ABSENT", "a --set nonsense=1"],
    "requests export": ["NEW -c ABSENT"],
    "requests import": ["ABSENT -c CONFIG", "FILE -c ABSENT"],
    "evaluate": [
        "-m base=FILE -m tuned=FILE --benchmark nonsense=FILE",
        "-m base=FILE -m tuned=FILE --benchmark stsb=ABSENT",
        "-m base=nothing -m tuned=FILE --benchmark stsb=FILE",
        "-m base=ViT-B-33:openai -m tuned=FILE --benchmark stsb=FILE",
        "-m base=FILE -m tuned=ViT-B-32:nothing --benchmark stsb=FILE",
        "-m base=FILE -m tuned=expanded:nothing.parquet:FILE --benchmark stsb=FILE",
        "-m base=FILE -m tuned=expanded:FILE:FILE --benchmark stsb=FILE",
    ],
    "promote": ["-c ABSENT", "-c CONFIG --channel ../x"],
    "expand": ["ABSENT -o NEW.parquet -m FILE", "FILE -o NEW -m FILE", "FILE -o NEW.parquet -m FILE -c ABSENT"],
    "search": [
        "dog --model nothing",
        "dog --model ABSENT",
        "dog --model ~no-such-user/x",
        "dog --model ingest/",
        "dog --model FILE --paraphrases 3 -c ABSENT",
    ],
    "ui": [
        "--model FILE --heads ABSENT",
        "--model nothing",
        "--model ABSENT",
        "--model ~no-such-user/x",
        "--model ingest/",
    ],
    "audit": ["--model nothing --queries FILE", "--model ingest/ --queries ABSENT"],
    "export": ["nothing NEW", "ABSENT NEW", "ingest/ NEW", "ViT-B-33:openai NEW", "ViT-B-32:absent/w.pt NEW"],
    "export-dataset": ["NEW", "NEW -c ABSENT", "NEW -a nothing", "NEW -a ingest/"],
    "verify-index": ["--base nothing --tuned FILE", "--base FILE --tuned FILE --images ABSENT"],
    "serve": ["-c ABSENT", "--folder ABSENT"],
    "deploy": ["-c ABSENT"],
    "artifacts ls": ["--root ABSENT", "--root ~no-such-user/x"],
    "artifacts show": ["nothing", "finetune/nothing", "nothing/nothing", "../x", "--root ABSENT x"],
    "artifacts verify": ["nothing", "--root ABSENT"],
    "artifacts gc": ["--root ABSENT"],
    "channel history": ["nothing", "../x", "--root ABSENT x"],
    "channel rollback": ["nothing", "../x", "nothing --to 3f", "--root ABSENT x"],
    "cache stats": ["--root ABSENT"],
    "cache export": ["NEW --root ABSENT"],
    "cache import": ["ABSENT"],
    "cache compact": ["--root ABSENT"],
    "config show": ["-c ABSENT"],
}
NAMELESS = {"config schema"}
"""Commands that take no name of anything."""
WITHOUT_ROOT = {
    "init", "run", "plan", "paraphrase", "promote", "serve", "deploy", "requests export", "requests import",
    "config show"
}  # fmt: skip


def test_every_command_is_tried() -> None:
    assert COMMANDS.keys() == UNKNOWN.keys() | NAMELESS


@pytest.mark.parametrize("command", UNKNOWN)
def test_a_name_that_nothing_has_ends_with_2(
    command: str, finished_run: Callable[..., Any], tmp_path: Path, cli: Any
) -> None:
    run = finished_run()
    (tmp_path / "file.txt").write_text("")
    places = {
        "ABSENT": tmp_path / "absent",
        "CONFIG": run.config,
        "NEW": tmp_path / "new",
        "FILE": tmp_path / "file.txt",
        "FOLDER": run.config.parent,
    }
    for text in UNKNOWN[command]:
        given = [str(places.get(word, word)) for word in text.split()]
        given = ["=".join(str(places.get(part, part)) for part in word.split("=")) for word in given]
        root = [] if "--root" in given or command in WITHOUT_ROOT else ["--root", str(run.store.root)]
        assert cli([*command.split(), *given, *root], code=2).err.strip()
    assert not (tmp_path / "absent").exists() and not (tmp_path / "new").exists()


def test_a_folder_that_is_no_root_is_left_as_it_is(tmp_path: Path, cli: Any) -> None:
    (tmp_path / "1.jpg").touch()
    for command in (["artifacts", "ls"], ["cache", "stats"], ["cache", "compact"]):
        assert f"there is no root {tmp_path}" in cli([*command, "--root", str(tmp_path)], code=2).err
    assert [path.name for path in tmp_path.iterdir()] == ["1.jpg"]


def test_what_is_there_and_cannot_be_used_ends_with_1(finished_run: Callable[..., Any], cli: Any) -> None:
    run = finished_run()
    cli(["run", "-c", str(run.config)])
    run.store.remove(run.artifacts["finetune"])
    for command in (["artifacts", "show", "made"], ["search", "dog", "--model", "made"]):
        assert "is gone from" in cli([*command, "--root", str(run.store.root)], code=1).err
