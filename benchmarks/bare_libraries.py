"""What a language-model library takes by itself for given requests: no code of ours between it and the clock.

The settings are those of our engine on the same library: arithmetic, batch size, scheduler, sampling and where answers
end. All requests with the same sampling go to the library in one call (transformers has batches only, so these are cut
as our engine cuts them, by length). What our engines do about beginnings that prompts share is theirs: transformers'
`generate` computes whole prompts, OpenVINO GenAI has its own prefix cache switched on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from paraclip_core.config import SamplingOptions, SmolLM2Options, TransformersOptions
from paraclip_core.paraphrase.engines.smollm2 import PROPERTIES, chatml, gguf_file
from paraclip_core.paraphrase.protocol import Prompt

Request = tuple[Prompt, SamplingOptions]
Ask = Callable[[Sequence[Request]], int]
"""Answers all requests; gives the number of answers."""


def openvino(precision: str, options: SmolLM2Options) -> Ask:
    """OpenVINO GenAI's `LLMPipeline.generate` on the embedded model."""
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    scheduler.max_num_seqs = options.max_num_seqs
    scheduler.max_num_batched_tokens = options.max_num_batched_tokens
    scheduler.cache_size = options.cache_size
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


def _by_sampling(requests: Sequence[Request]) -> list[tuple[SamplingOptions, list[Prompt]]]:
    ordered = sorted(requests, key=lambda request: request[1].model_dump_json())
    groups = groupby(ordered, key=lambda request: request[1])
    return [(sampling, [prompt for prompt, _ in group]) for sampling, group in groups]


def _rendered(tokeniser: Any, prompt: Prompt) -> str:
    if prompt.messages[0][0] == "text":
        return prompt.messages[0][1]
    turns = [{"role": role, "content": content} for role, content in prompt.messages]
    return tokeniser.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
