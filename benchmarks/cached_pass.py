"""The paraphrase stage over captions whose every answer is cached: taking blocks judged before, and judging again.

`bench_generate.py` runs it. Both passes go through the stage's own body, in turn in one process: rows are read from
Parquet, decided, and written with their rejects. Times are processor time of all threads, so busy cores do not count.
"""

from __future__ import annotations

import hashlib
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from bench_cache import PIECE, generations
from record import record

import tasks.stages.paraphrase as stage_module
from paraclip_core.captions.tokens import Tokeniser
from paraclip_core.config import GateOptions, ParaphraseOptions, SamplingOptions, Settings
from paraclip_core.paraphrase.protocol import Completion, Prompt
from paraclip_core.progress import Progress, silent
from paraclip_core.tables import CAPTIONS
from storage.artifacts import Artifact, ArtifactStore, WorkFolder
from storage.generations import GenerationStore
from storage.manifests import Manifest
from storage.parquet import PartWriter
from tasks.stage import StageContext
from tasks.stages.paraphrase import PARAPHRASE_1

__all__ = ["cached_growth", "cached_passes"]

REPEATS = 3
GATED_SHARE = 50
"""Of so many captions one is judged with the default gates, whose sentence encoder takes its time."""
ANSWERS = ("there is a dog with {0} balls on the beach", "a beach where a dog has {0} balls", "a cat sleeps indoors")


class Ready:
    """An engine that takes no time, and answers well two times of three."""

    name = model = "ready"

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        """One answer for each prompt."""
        numbers = [prompt.text.split() for prompt in prompts]
        return [Completion((ANSWERS[int(words[1]) % 3].format(words[-2]),), 10, 5) for words in numbers]

    def close(self) -> None:
        """Nothing to free."""


def cached_passes(captions: int) -> None:
    """Measure and record, with the cheapest gates and with the default ones."""
    with tempfile.TemporaryDirectory() as folder:
        _measure("cached_pass", Path(folder) / "paper", captions, GateOptions(preset="paper"), memory=True)
        gated = GateOptions(max_repeats=50)
        _measure("cached_pass_default_gates", Path(folder) / "gated", captions // GATED_SHARE, gated)


def cached_growth(captions: int, sizes: Sequence[int]) -> None:
    """Measure and record what the same captions cost as other captions' answers fill the cache to these sizes."""
    with tempfile.TemporaryDirectory() as folder, _instead("make_engine", lambda *_, **__: Ready()):
        store, settings = ArtifactStore(Path(folder)), _settings(GateOptions(preset="paper"))
        rows = _ingested(store, captions)
        expected, _ = _pass(store, settings, rows)
        cache = GenerationStore(store.cache)
        passes: list[tuple[float, float]] = []
        there = cache.stats().rows
        for size in sizes:
            while there < size:
                others = generations(min(PIECE, size - there), 1, seed=there)
                cache.append(others)
                there += others.num_rows
            cache.close()
            kept, again = [], []
            for _ in range(REPEATS):
                found, seconds = _pass(store, settings, rows)
                kept.append(seconds)
                with _instead("known_judgements", lambda *_: None):
                    judged, seconds = _pass(store, settings, rows)
                again.append(seconds)
                assert expected == found == judged
            passes.append((statistics.median(kept), statistics.median(again)))
            print(f"{size} rows: {[round(1e6 * seconds / captions, 2) for seconds in passes[-1]]} CPU µs a caption")
        against = f"{sizes[0]} rows instead of {sizes[-1]}"
        for name, first, last in zip(("cached_pass", "cached_pass_judging"), passes[0], passes[-1], strict=True):
            record(f"{name}_growth", captions / last, "captions/CPU s", against, first / last)


def _settings(gates: GateOptions) -> Settings:
    options = ParaphraseOptions(engine="transformers", model="ready", prompts="paper", chunk=1024, gates=gates)
    return Settings(paraphrase=options)


def _measure(name: str, folder: Path, captions: int, gates: GateOptions, memory: bool = False) -> None:
    store = ArtifactStore(folder)
    settings = _settings(gates)
    rows = _ingested(store, captions)
    with _instead("make_engine", lambda *_, **__: Ready()):
        expected, _ = _pass(store, settings, rows)
        kept, again = [], []
        resident: list[int] = []
        for _ in range(REPEATS):
            resident.clear()
            found, seconds = _pass(store, settings, rows, _watching(resident))
            kept.append(seconds)
            with _instead("known_judgements", lambda *_: None):
                judged, seconds = _pass(store, settings, rows)
            again.append(seconds)
            if not expected == found == judged:
                raise SystemExit(f"{name}: the passes wrote different bytes")
    ratio = statistics.median(two / one for one, two in zip(kept, again, strict=True))
    rate = captions / statistics.median(kept)
    record(name, rate, "captions/CPU s", "the pass that judges every answer again", ratio)
    if memory:
        quarter = max(resident[: len(resident) // 4])
        record("cached_pass_memory", max(resident), "MiB resident", "its first quarter", quarter / max(resident), 1.0)


def _pass(store: ArtifactStore, settings: Settings, rows: Artifact, progress: Progress = silent) -> tuple[str, float]:
    """A hash of everything that the stage wrote, and processor seconds."""
    work = store.root / "work"
    shutil.rmtree(work, ignore_errors=True)
    started = _processor_seconds()
    body = StageContext(settings, store, {"ingest": rows}, WorkFolder(work / "out", work / "scratch"), progress)
    metrics = PARAPHRASE_1.body(body)
    seconds = _processor_seconds() - started
    assert metrics["captions"] == rows.manifest.metrics["accepted"]
    digest = hashlib.blake2b()
    for path in sorted((work / "out").rglob("*.parquet")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest(), seconds


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _watching(resident: list[int]) -> Progress:
    def told(done: int, total: int | None, **facts: float | int | str) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * resource.getpagesize() >> 20)

    return told


@contextmanager
def _instead(name: str, value: Callable[..., object]) -> Iterator[None]:
    """Another thing under a name of the stage's module."""
    before = getattr(stage_module, name)
    setattr(stage_module, name, value)
    try:
        yield
    finally:
        setattr(stage_module, name, before)


def _ingested(store: ArtifactStore, captions: int) -> Artifact:
    """An ingest artifact with that many captions, as far as the stage looks at it."""
    folder, name = store.path("ingest", "0" * 32), "0" * 32
    writer, tokens = PartWriter(folder / "captions", CAPTIONS), Tokeniser().encode_batch
    for start in range(0, captions, 50_000):
        numbers = range(start, min(start + 50_000, captions))
        texts = [f"photo {n} of a dog on the beach with {n % 997} balls" for n in numbers]
        ids = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
        known = {
            "caption_id": pa.array(ids, pa.binary(16)),
            "caption": pa.array(texts),
            "caption_raw": pa.array(texts),
            "caption_tokens": tokens(texts),
            "split": pa.repeat(pa.scalar("train"), len(texts)),
            "licence": pa.repeat(pa.scalar("CC0"), len(texts)),
            "source": pa.repeat(pa.scalar("made"), len(texts)),
            "source_row": pa.array(numbers, pa.int64()),
        }
        arrays = [known.get(field.name, pa.nulls(len(texts), field.type)) for field in CAPTIONS]
        writer.write(pa.RecordBatch.from_arrays(arrays, schema=CAPTIONS))
    writer.close()
    made = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    return Artifact(folder, Manifest("ingest", name, 1, {}, {}, {}, {"accepted": captions}, {}, 0.0, made))
