"""Name and revision of a model that lies in a local folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.protocol import HashFiles

__all__ = ["SMALL_BYTES", "local_model", "read_hashes"]

SMALL_BYTES = 16 * 1024 * 1024


def read_hashes(files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file, read now."""
    hashes = {}
    for path in files:
        with path.open("rb") as file:
            hashes[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def local_model(folder: Path, hash_files: HashFiles = read_hashes) -> str:
    """Folder name and a hash of the names and contents of its files.

    Args:
        folder: a Hugging Face folder.
        hash_files: hashes the big files.

    Raises:
        EngineError: the folder is not there or holds no Hugging Face model.
        InputError: `hash_files` cannot read a file.
    """
    digest = hashlib.blake2b(digest_size=12)
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        if not any(path.name == "config.json" for path in files):
            raise EngineError(f"paraphrase.model: {folder} has no config.json; expected a Hugging Face folder")
        sizes = {path: path.stat().st_size for path in files}
        big = hash_files([path for path in files if sizes[path] > SMALL_BYTES])
        for path in files:
            digest.update(f"{path.name}\0{sizes[path]}\0".encode())
            digest.update(big[str(path)].encode() if str(path) in big else path.read_bytes())
    except OSError as error:
        raise EngineError(f"paraphrase.model: cannot read {folder}: {error.strerror or error}") from error
    return f"{folder.name}@{digest.hexdigest()}"
