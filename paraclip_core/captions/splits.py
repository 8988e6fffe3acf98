"""Names of splits in rows, options and file names."""

from __future__ import annotations

import re
from pathlib import Path

from paraclip_core.errors import ConfigError

SPLITS = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SHARD = re.compile(r"([a-z]+)-\d{5}-of-\d{5}\b.*")
"""Names such as ``validation-00000-of-00002.parquet``, as on the Hugging Face hub."""


def split_name(value: str) -> str | None:
    """train, val or test for any usual name of a split; None otherwise."""
    return SPLITS.get(value.strip().lower())


def configured_split(value: str | None) -> str:
    """The split of rows that do not state one."""
    split = "train" if value is None else split_name(value)
    if split is None:
        raise ConfigError(f"data.sources[].split is {value!r}, expected train, val or test")
    return split


def shard_split(path: Path) -> str | None:
    """The split in the name of a shard; None if there is none."""
    shard = SHARD.fullmatch(path.name)
    return None if shard is None else split_name(shard[1])
