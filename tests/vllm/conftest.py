"""Real vLLM on a CPU and real SmolLM2. `make test-vllm` makes the environment and sets PARACLIP_VLLM."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

FOLDER = os.environ.get("PARACLIP_VLLM")
PAIRS = Path(__file__).parents[1] / "data" / "faithfulness" / "pairs.jsonl"
CAPTIONS = 24


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave these tests to `make test-vllm`: they take minutes and an environment of their own."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            if FOLDER is None:
                item.add_marker(pytest.mark.skip(reason="vLLM has an environment of its own: make test-vllm"))


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The embedded model as a Hugging Face folder."""
    return str(Path(str(FOLDER)) / "smollm2")


@pytest.fixture(scope="session")
def vllm_options() -> dict[str, Any]:
    """Options for a small machine."""
    return {
        "python": str(Path(str(FOLDER)) / "bin" / "python"),
        "extra": {"dtype": "bfloat16", "max_model_len": 1024, "enforce_eager": True, "max_num_seqs": 32},
    }


@pytest.fixture(scope="session")
def captions() -> list[str]:
    """Different captions of photographs, of different lengths."""
    pairs = [json.loads(line) for line in PAIRS.read_text("utf-8").splitlines()]
    texts = dict.fromkeys(pair["caption"] for pair in pairs if pair["kind"] == "photo")
    return [text for text in texts if 4 <= len(text.split()) <= 14][:CAPTIONS]
