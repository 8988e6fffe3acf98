"""Engines that paraphrase, one per file, behind :class:`paraclip_core.paraphrase.protocol.Engine`."""

from __future__ import annotations

from pathlib import Path

from paraclip_core.config import ParaphraseOptions
from paraclip_core.errors import ConfigError
from paraclip_core.paraphrase.engines.local_model import HashFiles, read_hashes
from paraclip_core.paraphrase.protocol import Engine
from paraclip_core.paths import user_path

__all__ = ["make_engine"]


def make_engine(
    options: ParaphraseOptions,
    data_root: Path | str = ".",
    device: str = "auto",
    hash_files: HashFiles = read_hashes,
) -> Engine:
    """The engine that the options name; no model is loaded before the first request.

    Args:
        options: the paraphrase options.
        data_root: folder that the paths of the `file` engine are relative to.
        device: where the `transformers` and `vllm` engines compute: a torch device, or `auto`.
        hash_files: hashes the weights of a model that lies in a folder.

    Raises:
        ConfigError: an option that this engine needs is missing.
    """
    if options.engine == "smollm2":
        from paraclip_core.paraphrase.engines.smollm2 import SmolLM2Engine

        return SmolLM2Engine(options.precision, options.smollm2)
    if options.engine == "transformers":
        from paraclip_core.paraphrase.engines.transformers import TransformersEngine

        if not options.model:
            raise ConfigError("paraphrase.engine=transformers needs paraphrase.model, the folder of a local model")
        return TransformersEngine(user_path(options.model), device, hash_files, options.transformers)
    if options.engine == "vllm":
        from paraclip_core.paraphrase.engines.vllm import VllmEngine

        if not options.model:
            raise ConfigError("paraphrase.engine=vllm needs paraphrase.model, a model's folder or its id on the hub")
        return VllmEngine(options.model, options.vllm, device, hash_files)
    if options.engine == "openai":
        from paraclip_core.paraphrase.engines.openai import OpenAIEngine

        if not options.model:
            raise ConfigError("paraphrase.engine=openai needs paraphrase.model, the model's name at the server")
        return OpenAIEngine(options.model, options.openai)
    from paraclip_core.paraphrase.engines.file import FileEngine

    if not options.file.path:
        raise ConfigError("paraphrase.engine=file needs paraphrase.file.path, the file with your paraphrases")
    return FileEngine(user_path(data_root) / user_path(options.file.path), options.file)
