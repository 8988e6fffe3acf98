"""Options of earlier releases that are gone, and what replaces each.

A later release may read a configuration of an earlier one, for which the nearest current name is a wrong hint.
"""

from __future__ import annotations

from collections.abc import Sequence

SINCE = "0.1.0"
"""The last release that had them."""

CONSTANT = "leave it out; it is a constant now"
NOTHING_GAINED = "leave it out; it gained nothing (dev/log)"
TO_EXTRA = "write it into paraphrase.vllm.extra"
ONE_MACHINE = (
    "leave it out; the engine vllm uses all GPUs of a machine, and `vllm serve` answers for several machines "
    "(docs/deployment.md)"
)
LICENSE = "write license"
OTHER_CAPTIONS = "use paraphrase.engine: file with a file of captions as paraphrase.file.path (docs/engines.md)"
OPENVINO = "write openvino, which uses SmolLM2 if no paraphrase.model is named"
NO_SUCH_FILTER = "leave it out; for stricter filtering use paraphrase.judge or a filter of your own (docs/filters.md)"


def _each(advice: str, group: str, *names: str) -> dict[str, str]:
    return {f"{group}.{name}": advice for name in names}


GONE: dict[str, str] = {
    "bootstrap": "write built_in_base",
    **_each(CONSTANT, "data", "max_chars", "unspaced_scripts", "context_length", "scenes.seed", "scenes.held_out"),
    **_each(LICENSE, "data.sources.0", "licence", "columns.licence"),
    "paraphrase.gates": "write paraphrase.filters",
    "paraphrase.synonyms": "leave it out; paraphrase.prompts and paraphrase.filters decide it",
    "paraphrase.stop_below": "leave it out; a warning says that few first answers are accepted",
    "paraphrase.regenerate": "write paraphrase.attempts, which asks again for every caption without an accepted answer",
    "paraphrase.smollm2": "leave it out; the engine openvino uses SmolLM2 without options",
    "paraphrase.mined": OTHER_CAPTIONS,
    **_each(
        "leave it out; the columns of the file are called caption, paraphrase_1 and paraphrase_2",
        "paraphrase.file",
        *("caption", "paraphrase_1", "paraphrase_2"),
    ),
    **_each(
        CONSTANT,
        "paraphrase.filters",
        *("max_overlap", "max_new_content_words", "min_word_similarity", "max_lost_words"),
    ),
    **_each(NO_SUCH_FILTER, "paraphrase.filters", "nli", "min_entailment", "max_repeats", "min_length_ratio"),
    "paraphrase.openai.ask_for_n": "leave it out, or write `n: null` into paraphrase.openai.extra_body",
    "paraphrase.openai.tokens_per_minute": "write paraphrase.openai.requests_per_minute",
    "paraphrase.openai.timeout_seconds": "leave it out; a request has ten minutes",
    "paraphrase.openai.revision": "leave it out, or write the revision as a part of paraphrase.model",
    **_each(CONSTANT, "paraphrase.openai", "backoff_seconds", "max_failures"),
    "paraphrase.transformers.dtype": "leave it out; a model is computed in the dtype of its files",
    **_each(
        TO_EXTRA,
        "paraphrase.vllm",
        *("data_parallel_size", "dtype", "enable_chunked_prefill", "enable_prefix_caching", "enforce_eager"),
        *("gpu_memory_utilization", "kv_cache_dtype", "max_model_len", "max_num_batched_tokens", "max_num_seqs"),
        *("quantization", "revision", "speculative_config", "tensor_parallel_size"),
    ),
    "model.text_heads": "leave it out; every 64 units of model.text_width are an attention head",
    "model.seed": CONSTANT,
    "features.shard_images": CONSTANT,
    **_each(CONSTANT, "built_in_base", "weight_decay", "warmup", "validation", "seed", "clip_norm"),
    "built_in_base.precision": "write finetune.precision, which applies to both trainings",
    "built_in_base.checkpoint_steps": "write finetune.checkpoint_steps, which applies to both trainings",
    **_each(NOTHING_GAINED, "built_in_base", "ema", "layer_decay"),
    **{
        f"{training}.{name}": advice
        for training in ("built_in_base", "finetune")
        for name, advice in (
            ("memory_gib", "leave it out; it follows from the free memory of the device"),
            ("checkpoint_minutes", "leave it out; a checkpoint is written every minute"),
        )
    },
    "finetune.train": "leave it out; the whole text encoder is trained",
    "finetune.logit_scale": "leave it out; the scale is trained",
    "finetune.warmup": "leave it out; it is a tenth of the steps",
    "finetune.clip_norm": CONSTANT,
    "finetune.mask_duplicates": "leave it out; equal texts and images are always masked",
    **_each(
        NOTHING_GAINED,
        "finetune",
        *("l2_sp", "ema", "layer_decay", "negatives", "image_gate", "validations", "weights.image_paraphrase_1"),
    ),
    "finetune.ranks": "write finetune.ranking_distillation",
    "finetune.ranking_distillation.temperature": CONSTANT,
    "finetune.ranking_distillation.bank": "leave it out; it cost recall",
    "finetune.alpha.max_recall_drop": "leave it out; no significant loss of recall on held-out images is accepted",
    "finetune.alpha.recall_weight": "leave it out; the choice weighs recall and agreement alike",
    "evaluate.control_learning_rate": "leave it out; the control chooses among finetune.learning_rate by itself",
    **_each(CONSTANT, "evaluate", "resamples", "confidence", "seed"),
    "run.judges": "write run.threads, which also says how many processes judge answers",
    "run.retries": "leave it out; a deployment retries a stage if that may help, `paraclip run` does not",
    "run.stage_timeout": "leave it out; Cancel ends a stage, and the next run continues from there",
    "run.processes": "leave it out; one process trains, on one GPU",
    **_each(ONE_MACHINE, "run", "runner", "shards", "ray_address", "ray_cpus", "ray_gpus"),
    **_each("write run.drift.limit", "run.drift", "max_changed", "max_new_words"),
    **_each("leave it out; run.drift.limit bounds what is left", "run.drift", "max_length_change", "max_shift"),
}
"""What to do, by the dotted path of an option; an item of a list is written ``0``."""

GONE_VALUES: dict[str, dict[str, str]] = {
    "paraphrase.engine": {"smollm2": OPENVINO, "mined": OTHER_CAPTIONS},
    "paraphrase.filters.preset": {"paper": "write off", "mined": OTHER_CAPTIONS},
    "model.base": {"embedded": "write built-in"},
    "run.trackers.0": {"file": "leave it out; the stage's training_log.jsonl has the figures"},
    "finetune.ranking_distillation.teacher": {"wordings": "write mean"},
    "evaluate.benchmarks.0.kind": {
        "wordings": "write query_pairs",
        "caption_order": "leave the benchmark out; no published figure could be reproduced with it",
        "winoground": "write sugarcrepe, which measures the same thing",
    },
}
"""What to do, by the dotted path of an option and a value that it used to accept."""


def what_became_of(location: Sequence[str | int], value: object) -> str | None:
    """A message if the option at this location, or its value, is gone, with what to do instead; None if neither is."""
    shown = ".".join(map(str, location))
    path = ".".join("0" if isinstance(part, int) else part for part in location)
    if advice := GONE.get(path):
        return f"{shown} is gone since {SINCE}: {advice}"
    if isinstance(value, str) and (advice := GONE_VALUES.get(path, {}).get(value)):
        return f"{shown}: {value!r} is gone since {SINCE}: {advice}"
    return None
