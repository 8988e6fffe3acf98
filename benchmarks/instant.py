"""Any number of generated captions with answers to them, and a run over such captions."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from paraclip.storage.artifacts import Artifact
from paraclip.tasks.run.execute import STAGES, run_stage
from paraclip.tasks.run.run import Run
from paraclip_core.config import Settings
from paraclip_core.settings import parse_settings

SUBJECTS = ("a small boy", "two dogs", "an old man", "a young woman", "some kids", "a big horse", "a black car",
            "a little cat", "several people", "two old men", "three white birds", "a red bike")  # fmt: skip
ACTIONS = ("near a house", "next to a road", "on a hill", "in front of a shop", "under a big tree", "behind a fence",
           "on the beach", "by a river")  # fmt: skip
MOMENTS = ("in the rain", "on a sunny day", "at night", "in winter", "while others look on", "on a quiet morning",
           "before a storm", "in the evening", "under a gray sky", "in bright light")  # fmt: skip
DIFFERENT = len(SUBJECTS) * len(ACTIONS) * len(MOMENTS)
"""Number of captions without a number in them."""
OTHER_WORDS = {
    "small": "little", "little": "tiny", "boy": "child", "kids": "children", "dogs": "puppies", "woman": "lady",
    "big": "large", "car": "automobile", "bike": "bicycle", "cat": "kitten", "house": "home", "road": "street",
    "shop": "store", "hill": "slope", "beach": "shore", "river": "stream", "quiet": "calm", "gray": "cloudy",
    "near": "close to", "by": "beside", "behind": "at the back of", "people": "persons", "men": "guys",
}  # fmt: skip
MODEL = "instant-1"
EMPTY = 3
"""One text in this many gets an empty answer."""


def caption(number: int) -> str:
    """A unique caption."""
    rest, moment = divmod(number * 347 % DIFFERENT, len(MOMENTS))
    action, subject = divmod(rest, len(SUBJECTS))
    balloons = f" with {number // DIFFERENT} balloons" if number >= DIFFERENT else ""
    return f"{SUBJECTS[subject]} {ACTIONS[action]} {MOMENTS[moment]}{balloons}"


def answer(text: str, draw: int) -> str:
    """A text in other words, or nothing."""
    if not zlib.crc32(text.encode()) % EMPTY:
        return ""
    words = [OTHER_WORDS.get(word, word) for word in text.split()]
    turn = len(words) - 3 - draw
    return " ".join([*words[turn:], *words[:turn]])


def write_captions(path: Path, numbers: Iterable[int]) -> None:
    """Write a text file with one caption per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.writelines(f"{caption(number)}\n" for number in numbers)


def instant_run(folder: Path, **paraphrase: Any) -> Settings:
    """Settings of a run over `captions.txt` in `folder`, with its root there, too."""
    common = {"engine": "openai", "model": MODEL, "prompts": "paper", "sampling": {"n": 1}}
    return parse_settings(
        {
            "data": {"root": str(folder), "sources": [{"path": "captions.txt"}]},
            "paraphrase": common | paraphrase,
            "run": {"root": str(folder / "root"), "threads": 0},
        }
    )


HERE = {name: replace(stage, isolated=False) for name, stage in STAGES.items()}
"""Every stage, in the calling process."""


def stage_here(name: str, settings: Settings) -> Artifact:
    """The artifact of a stage, made in this process, so that memory and processor time are its own."""
    return run_stage(name, Run(settings, stages=HERE))
