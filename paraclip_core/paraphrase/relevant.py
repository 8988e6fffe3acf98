"""Which paraphrase options an engine looks at: the others change neither a request's key nor a fingerprint."""

from __future__ import annotations

from typing import Any

from paraclip_core.config import ParaphraseOptions, SamplingOptions

__all__ = ["relevant", "unguarded"]

OWN: dict[str, tuple[str, ...]] = {
    "smollm2": ("precision", "smollm2"),
    "transformers": ("model", "transformers"),
    "vllm": ("model", "vllm"),
    "openai": ("model", "openai"),
    "file": ("file",),
}
"""Options that only some engines look at, by engine."""

# What a file answers depends on the text alone, and is the same however often it is asked.
FILE: dict[str, Any] = {
    "prompts": "paper",
    "prompt_1": "",
    "prompt_2": "",
    "synonyms": False,
    "sampling": SamplingOptions(temperature=0, n=1),
    "attempts": 1,
    "regenerate": (),
    "seed": 0,
}


def relevant(options: ParaphraseOptions) -> ParaphraseOptions:
    """The options with a fixed value for each that the chosen engine does not look at."""
    fields = ParaphraseOptions.model_fields
    others = {name for names in OWN.values() for name in names}.difference(OWN[options.engine])
    fixed = {name: fields[name].get_default(call_default_factory=True) for name in others}
    return options.model_copy(update=fixed | (FILE if options.engine == "file" else {}))


def unguarded(options: ParaphraseOptions) -> str | None:
    """What to tell who has turned the gates off for the answers of a language model; None where they have not."""
    if options.engine == "file" or options.chosen_gates().preset != "paper":
        return None
    return (
        f"paraphrase.gates.preset=paper keeps whatever {options.engine} answers that holds a word: refusals, repeated "
        "prompts and answers that obey a caption, too. It is for comparisons with the published method and for "
        "paraphrases of your own; else set it to small-model and loosen single gates (docs/gates.md)"
    )
