"""Zero-shot classification: figures against sklearn-free loops and open_clip's own classifier, formats and names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from paraclip_core.clip.model import ClipModel
from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.encoder import ModelEncoder
from paraclip_core.evaluation.options import BenchmarkOptions
from paraclip_core.evaluation.prepare import prepare, source_files
from tests.kit.fake_encoder import WordEncoder

BENCHMARK = BenchmarkOptions(name="zs", kind="zeroshot_classification", path="x")
CLASSES = ("blue_car", "cat", "dog", "old_tree", "red_dog", "sea", "wet_grass")


def folders(root: Path) -> Path:
    for number, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for copy in range(1 + number % 3):
            (root / name / f"{name if copy else 'cat'}_{copy}.jpg").touch()
    return root


def test_figures_equal_a_plain_loop(tmp_path: Path) -> None:
    path = folders(tmp_path / "val")
    (path / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n{c}\n")
    measured = prepare(BENCHMARK, path).measure(encoder := WordEncoder())
    texts = []
    for name in CLASSES:
        both = encoder.texts([t.replace("{c}", name.replace("_", " ")) for t in ("a photo of a {c}.", "{c}")]).mean(0)
        texts.append(both / np.linalg.norm(both))
    first, fifth, by_class = [], [], {}
    for label, name in enumerate(CLASSES):
        for file in sorted((path / name).iterdir()):
            scores = np.stack(texts) @ encoder.images(path, [file.name])[0].astype(np.float32)
            order = np.argsort(-scores, kind="stable")
            first.append(order[0] == label)
            fifth.append(label in order[:5])
            by_class.setdefault(label, []).append(order[0] == label)
    assert measured.metrics == pytest.approx(
        {
            "top1_accuracy": 100 * np.mean(first),
            "top5_accuracy": 100 * np.mean(fifth),
            "mean_per_class_recall": 100 * np.mean([np.mean(hits) for hits in by_class.values()]),
        }
    )
    assert measured.notes["names"] == "the folders' names" and measured.notes["classes"] == 7
    assert {file.name for file in source_files("zeroshot_classification", path)} >= {"cat_0.jpg", "dog_1.jpg"}


def test_imagenets_synsets_and_open_clips_own_classifier(tmp_path: Path, small_model: tuple[ClipModel, str]) -> None:
    synsets = {"n01440764": 0, "n02123045": 281, "n02504458": 386, "n03063599": 504}
    rng = np.random.default_rng(0)
    for synset in synsets:
        (tmp_path / "val" / synset).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "val" / synset / f"{number}.png")
    clip, folder = small_model
    measured = prepare(BENCHMARK, tmp_path / "val").measure(ModelEncoder(folder, "cpu"))
    names = [open_clip.IMAGENET_CLASSNAMES[place] for place in synsets.values()]
    assert names[0] == "tench" and names[2] == "African bush elephant" and names[3] == "coffee mug"
    with torch.no_grad():
        weights = open_clip.build_zero_shot_classifier(
            clip.model, open_clip.SimpleTokenizer(), names, open_clip.OPENAI_IMAGENET_TEMPLATES
        )
        _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        files = sorted((tmp_path / "val").rglob("*.png"))
        pixels = torch.stack([preprocess(Image.open(file)) for file in files])  # pyright: ignore
        images = torch.nn.functional.normalize(clip.model.encode_image(pixels), dim=-1)  # pyright: ignore
    right = (images @ weights).argmax(1).numpy() == np.repeat(np.arange(4), 3)
    assert measured.metrics["top1_accuracy"] == pytest.approx(100 * right.mean(), abs=100 / 12 + 0.01)
    assert measured.notes["names"] == "open_clip's ImageNet names"
    (tmp_path / "val" / "n99999999").mkdir()
    (tmp_path / "val" / "n99999999" / "a.png").touch()
    with pytest.raises(
        BenchmarkError, match=r"n99999999 is not a class of ImageNet-1k; name all classes in classnames"
    ):
        prepare(BENCHMARK, tmp_path / "val")


@pytest.mark.parametrize(
    ("name", "text"),
    [("classnames.txt", "one\n"), ("classnames.txt", "\n"), ("zeroshot_classification_templates.txt", "a photo\n")],
)
def test_wrong_names_and_templates_are_reported(tmp_path: Path, name: str, text: str) -> None:
    (folders(tmp_path / "val") / name).write_text(text)
    with pytest.raises(BenchmarkError, match=name):
        prepare(BENCHMARK, tmp_path / "val")


def test_what_is_no_classification_is_reported(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    for path in (tmp_path, tmp_path / "x"):
        with pytest.raises(BenchmarkError, match="has 0 classified images"):
            prepare(BENCHMARK, path)
