"""Why a request would be paid for: what of its key differs from the nearest generation that is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from paraclip.storage.cache_tools import find_generation, nearest_generation
from paraclip.storage.generations import GenerationStore
from paraclip.tasks.context import Run
from paraclip_core.captions.clean import clean
from paraclip_core.errors import ConfigError, UnknownNameError
from paraclip_core.paraphrase.model_judge import JUDGE_STEP, judge_requests
from paraclip_core.paraphrase.requests import RequestKeys, step_requests
from paraclip_core.paraphrase.rounds import word_requests
from paraclip_core.paraphrase.small_model.synonyms import WORD_STEP

KEY = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Difference:
    """A part of the key that is not the same."""

    part: str
    """`step`, `model`, `prompt`, `prompt text`, `sampling.NAME`, `seed`, `attempt` or `input`."""
    asked: Any
    """What the configuration asks for."""
    kept: Any
    """What the generation was asked with."""


@dataclass(frozen=True)
class Explanation:
    """What the configuration would ask for, and what is kept."""

    key: str
    """Key of the request that the configuration would make, as hex."""
    cached: bool
    """It is kept, so nothing would be paid for."""
    asked: dict[str, Any]
    """Every part of that request."""
    nearest: dict[str, Any] | None
    """The nearest generation that is kept, with its key and raw answers; None where there is none."""
    differences: tuple[Difference, ...]
    """What differs between the two; empty where the request is kept."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def explain(run: Run, store: GenerationStore, what: str, step: int = 1, attempt: int = 0) -> Explanation:
    """Compare what a run asks for with what is kept.

    Args:
        run: the run.
        store: the generation cache.
        what: a generation's key as 32 hex digits, or a text: the caption at step 1, paraphrase 1 at step 2.
        step: step of the text; a key has its own.
        attempt: attempt of the text; a key has its own.
    """
    generation: Mapping[str, Any] | None = None
    text = clean(what) if step == 1 else what
    if KEY.fullmatch(what.strip().lower()):
        generation = find_generation(store, bytes.fromhex(what.strip()))
        if generation is None:
            raise UnknownNameError(f"no generation has the key {what.strip()}; give the caption to see the nearest one")
        step, attempt, text = generation["step"], generation["attempt"], generation["input"] or ""
        attempt = attempt if attempt <= _last_attempt(run) else 0
    elif not text:
        raise ConfigError("the caption is empty; give the text that would be paraphrased, or a key")
    request = _request(run, step, attempt)
    asked = {"step": step, "model": request.model, "prompt": request.prompt_id, "prompt_hash": request.prompt_hash}
    asked |= {"sampling": request.sampling, "seed": request.seed, "attempt": attempt, "input": text}
    key = request.key(text)
    if generation is None:
        generation = find_generation(store, key) or nearest_generation(store, asked)
    if generation is None:
        return Explanation(key.hex(), False, _parts(asked), None, ())
    nearest = {"key": generation["key"].hex(), **_parts(generation), "completions": generation["completions"]}
    differences = _differences(_parts(asked), _parts(generation))
    return Explanation(key.hex(), generation["key"] == key, _parts(asked), nearest, differences)


def _request(run: Run, step: int, attempt: int) -> RequestKeys:
    options, model = run.paraphraser.options, run.paraphraser.model
    if step == JUDGE_STEP:
        judge = run.paraphraser.judge or run.paraphraser
        return judge_requests(judge.model, judge.options.sampling)
    if step != WORD_STEP:
        return step_requests(options, step, model, attempt)
    return replace(word_requests(options, model), attempt=attempt)


def _last_attempt(run: Run) -> int:
    return run.paraphraser.options.attempts - 1 + len(run.paraphraser.options.regenerate)


def _parts(request: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a request as they are shown."""
    prompt_hash, sampling = request["prompt_hash"], request["sampling"]
    try:
        options = json.loads(sampling or "{}")
    except ValueError:
        options = {"text": sampling}
    return {
        **{name: request[name] for name in ("step", "model", "prompt")},
        "prompt text": None if prompt_hash is None else prompt_hash.hex(),
        **{f"sampling.{name}": value for name, value in sorted(options.items())},
        **{name: request[name] for name in ("seed", "attempt", "input")},
    }


def _differences(asked: dict[str, Any], stored: dict[str, Any]) -> tuple[Difference, ...]:
    names = [*asked, *(name for name in stored if name not in asked)]
    return tuple(
        Difference(name, asked.get(name), stored.get(name)) for name in names if asked.get(name) != stored.get(name)
    )
