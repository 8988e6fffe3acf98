"""An engine that answers at once, or after a fixed time per call, and any number of generated captions.

Settings name it as `paraphrase.engine: instant:Instant` if this folder is on Python's path.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from paraclip.storage.artifacts import Artifact
from paraclip.tasks.run.execute import STAGES, run_stage
from paraclip.tasks.run.run import Run
from paraclip_core.config import Settings
from paraclip_core.paraphrase.engines import (
    Completion,
    EngineContext,
    EngineFacts,
    EngineOptions,
    Prompt,
    SamplingOptions,
)
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
EMPTY = 3
"""One text in this many gets an empty answer."""


class Instant:
    """Answers with other words in another order; records the time of its calls, and between them."""

    name, model = "instant", "instant-1"

    def __init__(self, options: EngineOptions[Any], context: EngineContext) -> None:
        """`options.options` may have `seconds`, the time of a call, and the facts `filters` and `shares_cores`."""
        own = options.options
        preset: Literal["off", "capable", "small-model"] = own.get("filters", "off")
        self.seconds: float = own.get("seconds", 0.0)
        self.facts = EngineFacts(filters=preset, shares_cores=own.get("shares_cores", False))
        self.busy: list[float] = []
        """Seconds of each call."""
        self.idle: list[float] = []
        """Seconds between each call and the next one."""
        self._ended: float | None = None

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        """Answers to each prompt."""
        began = time.perf_counter()
        if self._ended is not None:
            self.idle.append(began - self._ended)
        completions = [
            Completion(tuple(answer(prompt.text, draw) for draw in range(sampling.n)), 10, 5) for prompt in prompts
        ]
        time.sleep(self.seconds)
        self._ended = time.perf_counter()
        self.busy.append(self._ended - began)
        return completions

    def close(self) -> None:
        """Nothing to free."""


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


def instant_run(folder: Path, root: str = "root", judges: int = 0, **paraphrase: Any) -> Settings:
    """Settings of a run over `captions.txt` in `folder`, with its root there, too."""
    common = {"engine": "instant:Instant", "prompts": "paper", "sampling": {"n": 1}, "chunk": 1024}
    return parse_settings(
        {
            "data": {"root": str(folder), "sources": [{"path": "captions.txt"}]},
            "paraphrase": common | paraphrase,
            "run": {"root": str(folder / root), "threads": judges},
        }
    )


HERE = {name: replace(stage, isolated=False) for name, stage in STAGES.items()}
"""Every stage, in the calling process."""


def stage_here(name: str, settings: Settings) -> Artifact:
    """The artifact of a stage, made in this process, so that memory and processor time are its own."""
    return run_stage(name, Run(settings, stages=HERE))
