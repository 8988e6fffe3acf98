"""How fast this engine answers here, measured on a few of the run's own captions, whose answers are kept."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import pyarrow as pa

from paraclip_core.config import GateOptions, ParaphraseOptions, Settings
from paraclip_core.errors import ConfigError, InputError
from paraclip_core.paraphrase.counts import Counts
from paraclip_core.paraphrase.engines import make_engine
from paraclip_core.paraphrase.estimate import Asked, estimated
from paraclip_core.paraphrase.intake import in_fraction
from paraclip_core.paraphrase.keys import RequestKeys
from paraclip_core.paraphrase.prompts import prompt_for
from paraclip_core.paraphrase.protocol import Engine, GenerationCache
from paraclip_core.paraphrase.relevant import relevant
from paraclip_core.paraphrase.shards import first_requests
from paraclip_core.progress import Progress, silent
from storage.artifacts import ArtifactStore
from storage.roots import open_generations, open_store
from tasks.child import call_in_child, log_path
from tasks.dag import resolve
from tasks.models import model_hashes
from tasks.rates import Measured, keep_rate
from tasks.requests import scanned_rows
from tasks.samples import samples_path
from tasks.stages.paraphrase import count_spending, make_paraphraser, step_rows

__all__ = ["ANEW", "FEWEST", "calibrate", "captions_left", "captions_needed", "in_flight", "measure", "round_sizes"]

WARM = 8
"""Captions that are asked for before the clock starts: loading is not the rate."""

FEWEST = 2 * WARM
"""Captions without which nothing is measured."""

ROUNDS = 3
"""Parts that the time is measured in, at most: how much they differ says how much a rate is worth."""


ANEW = "--set paraphrase.seed=N, with another N, asks for answered ones anew"
"""What helps where every caption is answered."""


def in_flight(options: ParaphraseOptions) -> int:
    """Requests that the engine has at once, as far as there are as many."""
    return options.openai.concurrency if options.engine == "openai" else options.chunk


def captions_needed(options: ParaphraseOptions) -> int:
    """Captions with which the engine is twice as full as these options let it be, those to warm up included."""
    return WARM + 2 * in_flight(options)


def round_sizes(options: ParaphraseOptions, captions: int) -> list[int]:
    """How many captions are asked for under the clock, round by round, where there are `captions` to be timed.

    A round is some whole chunks where there are as many, and what is left over is not asked for. A server, to which
    chunks mean nothing, is not kept busy at the end of a round, which must be long against that.
    """
    size = 1 if options.engine == "openai" else options.chunk
    parts = captions // size
    if not parts:
        return [captions]
    rounds = max(1, min(ROUNDS, captions // (4 * in_flight(options)) if options.engine == "openai" else parts))
    return [size * (parts // rounds + (number < parts % rounds)) for number in range(rounds)]


def calibrate(
    settings: Settings,
    store: ArtifactStore,
    captions: int,
    progress: Progress = silent,
    remember: bool = True,
    fewest: int = FEWEST,
) -> Measured:
    """Ask for step 1 of some training captions in a child process, and keep their answers and the rate.

    Each is asked for once: words of `synonyms` and further attempts are left to the run, so that requests are alike.

    Args:
        settings: the run's settings.
        store: its artifact store.
        captions: how many captions to ask for.
        progress: told how far it is.
        remember: whether `plan` uses the rate from now on.
        fewest: how many captions there must be.

    Raises:
        ConfigError: the engine `file` has no rate.
        InputError: too few captions are left to ask for.
        EngineError: the engine failed.
    """
    expect_rate(settings)
    request = {
        "draft": {"stage": "calibrate", "fingerprint": ""},
        "settings": settings.model_dump(mode="json"),
        "root": store.location,
        "captions": captions,
        "fewest": fewest,
    }
    path = log_path(store, "calibrate", settings.paraphrase.engine)
    measured = Measured(**call_in_child("tasks.calibration:measure", request, settings, path, progress))
    if remember:
        keep_rate(settings, store, measured)
    return measured


def expect_rate(settings: Settings) -> None:
    """Refuse what cannot be measured.

    Raises:
        ConfigError: the engine `file` has no rate.
    """
    if settings.paraphrase.engine == "file":
        raise ConfigError("the engine file reads its answers and has no rate; choose another paraphrase.engine")


def captions_left(settings: Settings, store: ArtifactStore, most: int) -> int:
    """Different training captions that the generation cache has no answer for, counted up to `most`.

    Raises:
        InputError: a source file is missing or bad as a whole.
    """
    options = relevant(settings.paraphrase)
    engine = make_engine(options, settings.data.root, hash_files=model_hashes(settings))
    with closing(engine), closing(open_generations(store)) as cache:
        return _missing(settings, store, first_requests(options, 1, engine.model), cache, most).num_rows


def measure(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """What :func:`calibrate` does in its child process.

    Raises:
        ParaclipError: as `calibrate` says.
    """
    settings, store = Settings.model_validate(request["settings"]), open_store(request["root"])
    options = relevant(settings.paraphrase)
    engine = make_engine(options, settings.data.root, settings.run.device, model_hashes(settings))
    with closing(engine), closing(open_generations(store)) as cache:
        rows = _missing(settings, store, first_requests(options, 1, engine.model), cache, request["captions"])
        if rows.num_rows < request["fewest"]:
            raise InputError(
                f"{rows.num_rows} training captions are without an answer of {engine.model}; measuring its rate takes "
                f"at least {request['fewest']}; {ANEW}"
            )
        count_spending(options, engine, cache)
        sizes = round_sizes(options, rows.num_rows - WARM)
        samples = samples_path(store, "calibrate", options.engine)
        alike = _first_attempts_only(settings)
        began = time.monotonic()
        for _ in make_paraphraser(alike, 1, engine, cache, silent, WARM, samples).run(rows.slice(0, WARM).to_batches()):
            pass
        started = time.monotonic() - began
        timed = make_paraphraser(alike, 1, engine, cache, progress, sum(sizes), samples)
        clock = _Clock(timed.counts)
        for part in _parts(rows.slice(WARM), sizes):
            for _ in timed.run(part.to_batches()):
                pass
            clock.stop()
    samples.unlink(missing_ok=True)
    texts = rows.slice(WARM, sum(sizes)).column("caption").to_pylist()
    expected = estimated(prompt_for(options, 1), texts, options.sampling.n)
    return asdict(_measured(engine, len(texts), clock, expected, started))


def _measured(engine: Engine, timed: int, clock: _Clock, expected: Asked, started: float) -> Measured:
    """The rate that the clock saw over `timed` captions, and their real tokens over those that `plan` expects."""
    counts, requests = clock.counts, max(clock.counts.generated, 1)
    return Measured(
        engine=engine.name,
        model=engine.model,
        captions=WARM + timed,
        requests=counts.generated,
        rounds=len(clock.requests),
        requests_per_second=round(median(clock.requests), 3),
        slowest=round(min(clock.requests), 3),
        fastest=round(max(clock.requests), 3),
        prompt_tokens_per_second=round(median(clock.prompt_tokens), 1),
        tokens_per_second=round(median(clock.completion_tokens), 1),
        prompt_tokens=round(counts.prompt_tokens / requests, 2),
        completion_tokens=round(counts.completion_tokens / requests, 2),
        prompt_factor=round(counts.prompt_tokens / max(expected.prompt_tokens, 1), 4),
        completion_factor=round(counts.completion_tokens / max(expected.completion_tokens, 1), 4),
        start_seconds=round(started, 2),
    )


def _first_attempts_only(settings: Settings) -> Settings:
    """Settings with which each caption is asked for once and nothing is judged."""
    # The captions were chosen from the fraction already.
    changes = {
        "fraction": 1.0,
        "synonyms": False,
        "attempts": 1,
        "regenerate": (),
        "gates": GateOptions(preset="paper"),
    }
    return settings.model_copy(update={"paraphrase": settings.paraphrase.model_copy(update=changes)})


def _parts(rows: pa.Table, sizes: Iterable[int]) -> Iterator[pa.Table]:
    start = 0
    for size in sizes:
        yield rows.slice(start, size)
        start += size


@dataclass
class _Clock:
    """What an engine did a second, round by round."""

    counts: Counts
    """Grow from round to round."""
    requests: list[float] = field(default_factory=list)
    prompt_tokens: list[float] = field(default_factory=list)
    completion_tokens: list[float] = field(default_factory=list)
    _before: tuple[int, int, int, float] = (0, 0, 0, 0.0)

    def stop(self) -> None:
        """End a round."""
        counts = self.counts
        now = counts.generated, counts.prompt_tokens, counts.completion_tokens, counts.engine_seconds
        *done, seconds = (after - before for after, before in zip(now, self._before, strict=True))
        for rates, count in zip((self.requests, self.prompt_tokens, self.completion_tokens), done, strict=True):
            rates.append(count / max(seconds, 1e-6))
        self._before = now


def _missing(
    settings: Settings, store: ArtifactStore, first: RequestKeys, cache: GenerationCache, count: int
) -> pa.Table:
    """The first `count` different training captions whose answer the cache does not know."""
    node = resolve(settings, store)["ingest"]
    ingested = store.known("ingest", node.fingerprint)
    rows = scanned_rows(settings, store) if ingested is None else step_rows(store.with_files(ingested).path, 1)
    return _first_missing(rows, settings.paraphrase.fraction, first, cache, count)


def _first_missing(
    batches: Iterable[pa.RecordBatch], fraction: float, first: RequestKeys, cache: GenerationCache, count: int
) -> pa.Table:
    found: dict[str, pa.RecordBatch] = {}
    for batch in batches:
        texts = batch.column("caption").to_pylist()
        keys = first.keys(texts)
        known = set(cache.lookup(keys).column("key").to_pylist())
        for row, (text, key) in enumerate(zip(texts, keys.to_pylist(), strict=True)):
            if key not in known and text not in found and in_fraction(text, fraction):
                found[text] = batch.slice(row, 1)
            if len(found) == count:
                return pa.Table.from_batches(found.values())
    return pa.Table.from_batches(found.values()) if found else pa.table({"caption": pa.array([], pa.string())})
