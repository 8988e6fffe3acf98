"""The demo's DAG, every stage real and as small as it can be."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from paraclip_core.demo.render import write_scenes
from tests.kit.openai_server import reply, words_of


def served(url: str) -> dict[str, Any]:
    """Options for paraphrasing by a server, which takes no time to start."""
    return {
        "engine": "openai",
        "model": "smol",
        "prompts": "paper",
        "filters": {"preset": "off"},
        "chunk": 4,
        "fraction": 0.35,
        "sampling": {"n": 1, "max_tokens": 24},
        "openai": {"base_url": url, "api_key_env": "NO_KEY", "concurrency": 2},
    }


def written(asked: dict[str, Any]) -> dict[str, Any]:
    """A unique answer of that server."""
    return reply(f"one picture, number {zlib.crc32(words_of(asked).encode())}")


def tiny_run(root: Path, paraphrase: dict[str, Any]) -> dict[str, Any]:
    """The demo's DAG, every stage real and as small as it can be; its scenes are written under the root."""
    data = root / "demo-data"
    write_scenes(data, images=60, side=64)
    return {
        "name": "kill",
        "run": {"root": str(root), "threads": 1},
        "data": {
            "root": str(data),
            "sources": [{"path": "captions.jsonl", "images": "images.tar", "license": "CC0-1.0"}],
        },
        "paraphrase": paraphrase,
        # With fewer dimensions a base of sixty scenes says too little of ImageNet's classes to be known by them.
        "model": {"base": "built-in", "text_width": 64, "text_layers": 1, "embed_dim": 128},
        "features": {"batch_size": 8},
        "built_in_base": {"epochs": 15, "batch_size": 16},
        "finetune": {
            "recipe": "published",
            "learning_rate": 2e-4,
            "epochs": 10,
            "batch_size": 4,
            "checkpoint_steps": 5,
            "precision": "fp32",
            # One image, so that α = 1 is chosen: at α = 0 the release would say nothing of what was trained.
            "validation": 0.01,
        },
        "evaluate": {
            "split": "val",
            "queries": None,
            "benchmarks": [
                {"name": "paraphrased_queries", "kind": "paraphrased_retrieval", "path": "paraphrased_queries.jsonl"},
                {"name": "retrieval", "kind": "retrieval"},
            ],
        },
    }
