"""The measured rate of the engine that a run asks, as `plan` uses it: for its model, prompts and sampling only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from paraclip_core.config import ParaphraseOptions, Settings
from paraclip_core.paraphrase.engines import make_engine
from paraclip_core.paraphrase.keys import sampling_json
from paraclip_core.paraphrase.prompts import prompt_for
from paraclip_core.paraphrase.relevant import relevant
from storage.artifacts import ArtifactStore
from storage.rates import known_rate, remember_rate
from tasks.models import model_hashes

__all__ = ["Measured", "asked_for", "keep_rate", "measured_rate"]


@dataclass(frozen=True)
class Measured:
    """What was measured for step 1; the same is kept under the root for `plan`."""

    engine: str
    model: str
    captions: int
    """Captions that were asked for, those to warm up included."""
    requests: int
    """Requests under the clock, one for each caption: words of `synonyms` are not among them."""
    rounds: int
    """Parts of about the same size that were measured one after the other; the rates are their medians."""
    requests_per_second: float
    slowest: float
    """Requests a second in the slowest round."""
    fastest: float
    """Requests a second in the fastest round."""
    prompt_tokens_per_second: float
    tokens_per_second: float
    """Generated tokens."""
    prompt_tokens: float
    """Of a request, on average."""
    completion_tokens: float
    """Of a request, all its answers together, on average."""
    prompt_factor: float
    """Prompt tokens for each that :mod:`paraclip_core.paraphrase.estimate` expects of these requests; 0: not told."""
    completion_factor: float
    """Generated tokens for each that it expects; 0: not told."""
    start_seconds: float
    """Until the first answers were there."""

    @property
    def spread(self) -> str:
        """Requests a second from the slowest round to the fastest, for people; empty where there is one round."""
        return f"{self.slowest:.4g} to {self.fastest:.4g}" if self.rounds > 1 else ""


def asked_for(options: ParaphraseOptions) -> str:
    """Names the prompts of both steps and the sampling: with others, a rate is another one."""
    prompts = [prompt_for(options, step) for step in (1, 2)]
    return "|".join((*(f"{prompt.id} {prompt.hash.hex()}" for prompt in prompts), sampling_json(options.sampling)))


def keep_rate(settings: Settings, store: ArtifactStore, measured: Measured) -> None:
    """Let `plan` use a rate.

    Raises:
        ArtifactError: the file of rates cannot be written, or is no JSON.
    """
    asked = asked_for(relevant(settings.paraphrase))
    remember_rate(store.cache, measured.engine, measured.model, asked, asdict(measured))


def measured_rate(settings: Settings, store: ArtifactStore) -> Measured | None:
    """The rate for this engine, model, prompt set and sampling, if somebody measured it on this host.

    Raises:
        ConfigError: an option that the engine needs is missing.
        ArtifactError: the file of rates is no JSON.
    """
    options = relevant(settings.paraphrase)
    if options.engine == "file":
        return None
    model = make_engine(options, settings.data.root, hash_files=model_hashes(settings)).model
    return _read(known_rate(store.cache, options.engine, model, asked_for(options)))


def _read(found: dict[str, Any] | None) -> Measured | None:
    names = {field.name for field in fields(Measured)}
    # What another version kept, with less in it, does not count.
    return Measured(**{name: found[name] for name in names}) if found and names <= found.keys() else None
