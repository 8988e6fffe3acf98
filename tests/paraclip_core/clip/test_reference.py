"""What is known of a model's name without loading anything."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest

from paraclip_core.clip.reference import check_reference, pretrained_tags
from paraclip_core.errors import ModelError

TABLE = Path(open_clip.__file__).with_name("pretrained.py")


def test_the_tags_that_are_read_are_those_that_open_clip_has() -> None:
    for architecture in open_clip.list_models():
        assert pretrained_tags(TABLE, architecture) == set(open_clip.list_pretrained_tags_by_model(architecture))


@pytest.mark.parametrize(
    "content", ["_PRETRAINED = load()", "TABLE = {}", "_PRETRAINED = {'ViT-B-32': dict(**more)}", "def", "\0"]
)
def test_a_table_in_another_form_is_not_judged(content: str, tmp_path: Path) -> None:
    (tmp_path / "pretrained.py").write_text(content)
    assert pretrained_tags(tmp_path / "pretrained.py", "ViT-B-32") is None
    assert pretrained_tags(tmp_path / "absent.py", "ViT-B-32") is None


def test_a_tag_is_checked_and_a_file_is_not_one(tmp_path: Path) -> None:
    check_reference("ViT-B-32:openai")
    check_reference("ViT-B-32-quickgelu:openai")
    check_reference(f"ViT-B-32:{tmp_path}/weights.pt")
    for wrong in ("ViT-B-32:laion2b", "ViT-B-32:", "ViT-B-32-quickgelu:laion2b_s34b_b79k"):
        with pytest.raises(ModelError, match="has no weights"):
            check_reference(wrong)
