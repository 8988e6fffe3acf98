"""What is known of a model's name without loading anything."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest

from paraclip_core.clip.reference import check_reference
from paraclip_core.errors import ModelError


def test_every_tag_of_open_clip_is_known() -> None:
    for architecture, tag in open_clip.list_pretrained():
        check_reference(f"{architecture}:{tag}")


def test_a_tag_is_checked_and_a_file_is_not_one(tmp_path: Path) -> None:
    check_reference("ViT-B-32:openai")
    check_reference("ViT-B-32-quickgelu:openai")
    check_reference(f"ViT-B-32:{tmp_path}/weights.pt")
    for wrong in ("ViT-B-32:laion2b", "ViT-B-32:openia"):
        with pytest.raises(ModelError, match="has no weights"):
            check_reference(wrong)
