"""What a language-model library takes by itself for given requests: no code of ours between it and the clock.

The settings are those of our engine on the same library: arithmetic, batch size, scheduler, sampling and where answers
end. All requests with the same sampling go to the library in one call (transformers has batches only, so these are cut
as our engine cuts them, by length; a server gets as many at a time as our engine sends). OpenVINO GenAI and
vLLM have their prefix caches switched on.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx

from paraclip_core.config import SamplingOptions, TransformersOptions
from paraclip_core.demo.smollm2 import chatml, gguf_file
from paraclip_core.paraphrase.engines.base import Prompt
from paraclip_core.paraphrase.engines.openai import draw_seed
from paraclip_core.paraphrase.engines.openvino import PROPERTIES, SCHEDULER

VLLM_ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
"""What vLLM needs to know where it has no GPU; it means nothing where it has one."""

Request = tuple[Prompt, SamplingOptions]
Ask = Callable[[Sequence[Request]], int]
"""Answers all requests; gives the number of answers."""


def openvino(precision: str) -> Ask:
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
            texts = [p.messages[0][1] if p.messages[0][0] == "text" else chatml(p.messages) for p in prompts]
            count += len(pipeline.generate(texts, config).texts)
        return count

    return ask


def transformers(folder: Path, options: TransformersOptions) -> Ask:
    """transformers' `model.generate`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokeniser = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=options.dtype).eval()

    def ask(requests: Sequence[Request]) -> int:
        count = 0
        for sampling, prompts in _by_sampling(requests):
            texts = sorted((_rendered(tokeniser, prompt) for prompt in prompts), key=len)
            greedy = sampling.temperature == 0
            how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
            if not greedy:
                how = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
            n = 1 if greedy else sampling.n
            size = max(1, options.batch_size // n)
            for start in range(0, len(texts), size):
                inputs = tokeniser(
                    texts[start : start + size], return_tensors="pt", padding=True, add_special_tokens=False
                )
                with torch.inference_mode():
                    output = model.generate(
                        input_ids=inputs["input_ids"],
                        attention_mask=inputs["attention_mask"],
                        num_return_sequences=n,
                        max_new_tokens=sampling.max_tokens,
                        pad_token_id=tokeniser.pad_token_id,
                        stop_strings=["\n"],
                        tokenizer=tokeniser,
                        **how,
                    )
                fresh = output[:, inputs["input_ids"].shape[1] :]
                count += len(tokeniser.batch_decode(fresh, skip_special_tokens=True))
        return count

    return ask


@contextmanager
def vllm_server(python: Path, arguments: Mapping[str, Any]) -> Iterator[str]:
    """vLLM's server with OpenAI's interface, healthy; its URL."""
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


def vllm_served(url: str, model: str, concurrency: int) -> Ask:
    """Plain HTTP requests to a server with OpenAI's interface."""

    async def all_of(requests: Sequence[Request]) -> int:
        places, limits = asyncio.Semaphore(concurrency), httpx.Limits(max_connections=concurrency)
        async with httpx.AsyncClient(timeout=None, limits=limits) as client:

            async def one(prompt: Prompt, sampling: SamplingOptions) -> int:
                body = {"model": model, "messages": _turns(prompt), "seed": draw_seed(prompt, 0)}
                async with places:
                    reply = await client.post(f"{url}/chat/completions", json=body | _vllm_sampling(sampling))
                return len(reply.raise_for_status().json()["choices"])

            return sum(await asyncio.gather(*(one(*request) for request in requests)))

    return lambda requests: asyncio.run(all_of(requests))


def _vllm_sampling(sampling: SamplingOptions) -> dict[str, Any]:
    greedy = sampling.temperature == 0
    return {
        "n": 1 if greedy else sampling.n,
        "temperature": sampling.temperature,
        "top_p": 1.0 if greedy else sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "stop": ["\n"],
    }


def _turns(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": "user" if role == "text" else role, "content": content} for role, content in prompt.messages]


def _by_sampling(requests: Sequence[Request]) -> list[tuple[SamplingOptions, list[Prompt]]]:
    ordered = sorted(requests, key=lambda request: request[1].model_dump_json())
    groups = groupby(ordered, key=lambda request: request[1])
    return [(sampling, [prompt for prompt, _ in group]) for sampling, group in groups]


def _rendered(tokeniser: Any, prompt: Prompt) -> str:
    if prompt.messages[0][0] == "text":
        return prompt.messages[0][1]
    turns = [{"role": role, "content": content} for role, content in prompt.messages]
    return tokeniser.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
