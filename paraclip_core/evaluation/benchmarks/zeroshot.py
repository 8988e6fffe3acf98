"""Zero-shot classification (Radford et al., ICML 2021): to which class's texts is an image nearest?

A class is the mean of its templates' normalized text features, normalized again, as in open_clip's classifier.

The format is a folder with a folder of images for each class (ImageNet's `val` by synsets, or any other).

Names: ``classnames.txt``, one line per class in the order of the folder names; else for synsets open_clip's ImageNet
names; else the folder names. Templates: ``zeroshot_classification_templates.txt``, one per line with ``{c}`` for the
class; else OpenAI's 80 from open_clip.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.base import Encoder, ImagePool, Measured, archive_pool, unique_features
from paraclip_core.evaluation.benchmarks import Benchmark, Metric, Source, Task
from paraclip_core.evaluation.intervals import Sample
from paraclip_core.evaluation.metrics import macro_weights, recall_at_k
from paraclip_core.evaluation.published import lines
from paraclip_core.evaluation.scores import top_k
from paraclip_core.pictures import PICTURES

NAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
SYNSET = re.compile(r"n\d{8}")
CLASSES = 50
"""Number of classes whose texts are encoded at once."""


@dataclass(frozen=True)
class ClassifiedImages:
    """Images with their class numbers."""

    pool: ImagePool
    labels: NDArray[np.int64]
    """Class of each image of the pool."""
    names: Sequence[str]
    templates: Callable[[], list[Callable[[str], str]]]
    names_from: str
    templates_from: str


def load(source: Source) -> Task:
    path = source.need_path()
    folders = _class_folders(path) if path.is_dir() else []
    images = [*_in_folders(path, folders)]
    if len(images) < 2:
        raise BenchmarkError(f"{path} has {len(images)} classified images; expected a folder of images for each class")
    names, names_from = _names(path, [folder.name for folder in folders])
    labels = np.array([label for _, _, label in images], np.int64)
    templates, templates_from = _templates(path)
    places = [(archive, name) for archive, name, _ in images]
    pool = archive_pool([f"{archive.name}/{name}" for archive, name in places], places)
    classified = ClassifiedImages(pool, labels, names, templates, names_from, templates_from)
    return Task(lambda encoder: measure(classified, encoder))


def _class_folders(path: Path) -> list[Path]:
    return sorted(
        folder
        for folder in path.iterdir()
        if folder.is_dir() and any(file.suffix.lower() in PICTURES for file in folder.iterdir())
    )


def _in_folders(path: Path, folders: Sequence[Path]) -> Iterator[tuple[Path, str, int]]:
    for label, folder in enumerate(folders):
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() in PICTURES:
                yield path, f"{folder.name}/{file.name}", label


def _names(path: Path, folders: Sequence[str]) -> tuple[list[str], str]:
    if (path / NAMES).is_file():
        names = _lines(path / NAMES)
        if len(names) != len(folders):
            raise BenchmarkError(f"{path / NAMES} has {len(names)} names for {len(folders)} folders of images")
        return names, NAMES
    if all(SYNSET.fullmatch(name) for name in folders):
        return _imagenet_names(path, folders), "open_clip's ImageNet names"
    return [name.replace("_", " ") for name in folders], "the folders' names"


def _imagenet_names(path: Path, synsets: Sequence[str]) -> list[str]:
    # Imported here, because both import torch.
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data.imagenet_info import ImageNetInfo

    names = dict(zip(ImageNetInfo("imagenet-1k").label_names(), IMAGENET_CLASSNAMES, strict=True))
    if unknown := [synset for synset in synsets if synset not in names]:
        raise BenchmarkError(f"{path}: {unknown[0]} is not a class of ImageNet-1k; name all classes in {NAMES}")
    return [names[synset] for synset in synsets]


def _templates(path: Path) -> tuple[Callable[[], list[Callable[[str], str]]], str]:
    if not (path / TEMPLATES).is_file():
        name = "OPENAI_IMAGENET_TEMPLATES"
        # Imported late, because open_clip imports torch.
        return lambda: list(getattr(import_module("open_clip"), name)), f"open_clip's {name}"
    texts = _lines(path / TEMPLATES)
    if wrong := [text for text in texts if "{c}" not in text]:
        raise BenchmarkError(f"{path / TEMPLATES}: {wrong[0]!r} has no {{c}} for the class")
    return lambda: [lambda name, text=text: text.replace("{c}", name) for text in texts], TEMPLATES


def _lines(file: Path) -> list[str]:
    texts = [text.strip() for _, text in lines(file) if text.strip()]
    if not texts:
        raise BenchmarkError(f"{file} is empty; expected a text on each line")
    return texts


def classifier(images: ClassifiedImages, encoder: Encoder) -> NDArray[np.float32]:
    """The classes' text features: float32 [classes, d], rows of length 1."""
    templates = images.templates()
    rows = []
    for start in range(0, len(images.names), CLASSES):
        part = images.names[start : start + CLASSES]
        features, index = unique_features(encoder.texts, [make(name) for name in part for make in templates])
        means = features[index].reshape(len(part), len(templates), -1).mean(axis=1)
        rows.append(means / np.linalg.norm(means, axis=1, keepdims=True))
    return np.concatenate(rows)


def measure(images: ClassifiedImages, encoder: Encoder) -> Measured:
    """Top-1 and top-5 accuracy, and the mean of the per-class accuracies."""
    ranked = top_k(images.pool.features(encoder), classifier(images, encoder), 5)
    clusters = np.arange(len(images.labels))
    first = recall_at_k(ranked, images.labels, 1)
    weights = macro_weights([str(label) for label in images.labels.tolist()])
    samples = {"top1_accuracy": Sample(first, clusters)}
    if len(images.names) > 5:
        samples["top5_accuracy"] = Sample(recall_at_k(ranked, images.labels, 5), clusters)
    samples["mean_per_class_recall"] = Sample(first * weights, clusters)
    notes = {
        "protocol": "the class whose mean text feature is nearest; of equal ones the first",
        "images": len(images.labels),
        "classes": len(images.names),
        "classes_with_images": len(np.unique(images.labels)),
        "names": images.names_from,
        "templates": images.templates_from,
    }
    return Measured(samples, notes)


def _files(path: Path, split: str | None) -> list[Path]:
    texts = [file for file in path.glob("*.txt") if file.is_file()]
    return sorted([*texts, *(path / name for _, name, _ in _in_folders(path, _class_folders(path)))])


ZEROSHOT_CLASSIFICATION = Benchmark(
    title="Zero-shot classification",
    metrics=(
        Metric("top1_accuracy", "top-1 accuracy"),
        Metric("top5_accuracy", "top-5 accuracy"),
        Metric("mean_per_class_recall"),
    ),
    load=load,
    files=_files,
    aliases=("imagenet", "zeroshot"),
    hub_task="zero-shot-image-classification",
)
