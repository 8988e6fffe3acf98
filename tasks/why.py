"""Why a request would be paid for: what of its key differs from the nearest generation that is kept."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from paraclip_core.captions.clean import clean
from paraclip_core.config import SamplingOptions, Settings
from paraclip_core.errors import ConfigError, UnknownNameError
from paraclip_core.paraphrase.engines import make_engine, relevant_options
from paraclip_core.paraphrase.keys import RequestKeys, sampling_json
from paraclip_core.paraphrase.prompts import PromptTemplate, prompt_for
from paraclip_core.paraphrase.synonyms import THESAURUS, WORD_SAMPLING, WORD_STEP
from storage.generation_search import Kept, kept_under, nearest
from storage.generations import GenerationStore
from tasks.models import model_hashes

__all__ = ["Difference", "Explanation", "explain"]

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


def explain(settings: Settings, store: GenerationStore, what: str, step: int = 1, attempt: int = 0) -> Explanation:
    """Compare what the settings ask for with what is kept.

    Args:
        settings: the run's settings.
        store: the generation cache.
        what: a generation's key as 32 hex digits, or a text: the caption at step 1, paraphrase 1 at step 2.
        step: step of the text; a key has its own.
        attempt: attempt of the text; a key has its own.

    Raises:
        UnknownNameError: no generation has the key.
        ArtifactError: the cache cannot be read.
        ConfigError: the settings cannot be used.
    """
    if KEY.fullmatch(what.strip().lower()):
        kept = kept_under(store, bytes.fromhex(what.strip()))
        if kept is None:
            raise UnknownNameError(f"no generation has the key {what.strip()}; give the caption to see the nearest one")
        step, attempt = kept.step, kept.attempt if kept.attempt <= _last_attempt(settings) else 0
        text = kept.input or ""
    else:
        kept, text = None, clean(what) if step == 1 else what
        if not text:
            raise ConfigError("the caption is empty; give the text that would be paraphrased, or a key")
    request = _request(settings, step, attempt)
    key = request.key(text)
    asked = _parts(request.step, request.model, request.prompt_id, request.prompt_hash, request.sampling)
    asked |= {"seed": request.seed, "attempt": request.attempt, "input": text}
    if kept is None:
        wanted = {"step": step, "model": request.model, "prompt": request.prompt_id, "seed": request.seed}
        wanted |= {"prompt_hash": request.prompt_hash, "sampling": request.sampling, "attempt": attempt, "input": text}
        kept = kept_under(store, key) or nearest(store, wanted)
    found = None if kept is None else _kept_parts(kept)
    return Explanation(
        key.hex(),
        kept is not None and kept.key == key,
        asked,
        None if kept is None or found is None else {"key": kept.key.hex(), **found, "completions": kept.completions},
        () if found is None else _differences(asked, found),
    )


def _request(settings: Settings, step: int, attempt: int) -> RequestKeys:
    options = relevant_options(settings.paraphrase)
    prompt: PromptTemplate = THESAURUS if step == WORD_STEP else prompt_for(options, step)
    sampling: SamplingOptions = WORD_SAMPLING if step == WORD_STEP else options.sampling
    model = make_engine(options, settings.data.root, hash_files=model_hashes(settings)).model
    return RequestKeys(step, model, prompt.id, prompt.hash, sampling_json(sampling), options.seed, attempt)


def _last_attempt(settings: Settings) -> int:
    options = relevant_options(settings.paraphrase)
    return options.attempts - 1 + len(options.regenerate)


def _parts(step: int, model: str, prompt: str, prompt_hash: bytes | None, sampling: str | None) -> dict[str, Any]:
    values: dict[str, Any] = {"step": step, "model": model, "prompt": prompt}
    values["prompt text"] = None if prompt_hash is None else prompt_hash.hex()
    try:
        options = json.loads(sampling or "{}")
    except ValueError:
        options = {"text": sampling}
    return values | {f"sampling.{name}": value for name, value in sorted(options.items())}


def _kept_parts(kept: Kept) -> dict[str, Any]:
    values = _parts(kept.step, kept.model, kept.prompt, kept.prompt_hash, kept.sampling)
    return values | {"seed": kept.seed, "attempt": kept.attempt, "input": kept.input}


def _differences(asked: dict[str, Any], kept: dict[str, Any]) -> tuple[Difference, ...]:
    names = [*asked, *(name for name in kept if name not in asked)]
    return tuple(
        Difference(name, asked.get(name), kept.get(name)) for name in names if asked.get(name) != kept.get(name)
    )
