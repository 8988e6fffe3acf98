"""Missing requests as a file for OpenAI's Batch API, its like, and `vllm run-batch`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError
from paraclip_core.paraphrase.batch_lines import request_line
from paraclip_core.progress import Progress, silent
from storage.artifacts import ArtifactStore
from storage.files import write_atomic
from tasks.missing_requests import MissingRequests, looking_for_requests

__all__ = ["BOTH_STEPS", "Exported", "export_requests"]

BOTH_STEPS = (1, 2)


@dataclass(frozen=True)
class Exported:
    """What a batch file holds, and what it does not."""

    file: str
    model: str
    """The model that is asked, by its name at the server."""
    step_1: int
    """Requests of step 1."""
    step_2: int
    """Requests of step 2."""
    unanswered_1: int
    """Requests of step 1 without an answer, exported or not. Step 2 of their captions is not known yet."""
    words: bool
    """Whether the run also asks for single words, which no batch file carries."""
    unjudged: int
    """Answers that only the run can judge, because it asks for single words first: what follows from them is not in
    the file."""

    @property
    def requests(self) -> int:
        """All requests."""
        return self.step_1 + self.step_2

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "requests": self.requests}


def export_requests(
    settings: Settings,
    store: ArtifactStore,
    path: Path,
    steps: tuple[int, ...] = BOTH_STEPS,
    progress: Progress = silent,
) -> Exported:
    """Write what a run would ask and the generation cache does not hold, a request a line.

    Answers of step 1 without a verdict are judged on the way, because step 2 asks about what is accepted. Where there
    is nothing to ask the file is empty. It appears whole; memory does not grow with it.

    Args:
        settings: the run's settings.
        store: its artifact store.
        path: the file; one that is there is replaced.
        steps: whose requests are written.
        progress: told how far it is.

    Raises:
        ConfigError: the engine asks nothing, or the file cannot be there.
        InputError: a source file is missing or bad as a whole.
    """
    _check_target(path)
    counts: dict[int, int] = {1: 0, 2: 0}
    with looking_for_requests(settings, store, progress) as missing:

        def write(file: BinaryIO) -> None:
            for step, count in _write(missing, file, steps):
                counts[step] += count
                progress(sum(counts.values()), None, phase="writing requests")

        write_atomic(path, write)
        left = missing.unanswered, missing.words, missing.unjudged
        return Exported(str(path), missing.options.model, counts[1], counts[2], *left)


def _write(missing: MissingRequests, file: BinaryIO, steps: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    options = missing.options
    for block in missing.blocks():
        if block.request.step not in steps:
            continue
        for key, prompt in zip(block.keys, missing.prompts(block), strict=True):
            file.write(request_line(key, options.model, prompt, options.sampling, options.openai.extra_body))
        yield block.request.step, len(block.texts)


def _check_target(path: Path) -> None:
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
        raise ConfigError(f"{path} cannot be written; name a file in a folder that you may write to")
