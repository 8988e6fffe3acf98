"""Write SmolLM2-135M-Instruct as a Hugging Face folder, unpacked to bfloat16 (269 MB): vLLM reads no such GGUF.

python tests/vllm/export_smollm2.py FOLDER
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from paraclip_core.demo.smollm2 import gguf_file

folder = Path(sys.argv[1])
where: Any = {"pretrained_model_name_or_path": gguf_file().parent, "gguf_file": gguf_file().name}
# Without dequantizing the weights stay packed, and packed ones cannot be saved.
model = AutoModelForCausalLM.from_pretrained(
    **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
)
draft = folder.with_name(f".{folder.name}")
model.save_pretrained(draft)
AutoTokenizer.from_pretrained(**where).save_pretrained(draft)
shutil.rmtree(folder, ignore_errors=True)
draft.replace(folder)
