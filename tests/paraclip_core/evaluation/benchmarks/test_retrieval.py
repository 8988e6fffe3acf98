"""Retrieval against CLIP_benchmark's own way of counting."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from paraclip_core.errors import BenchmarkError, ModelError
from paraclip_core.evaluation.base import Captions
from paraclip_core.evaluation.benchmarks import retrieval
from paraclip_core.evaluation.options import BenchmarkOptions
from paraclip_core.evaluation.prepare import prepare, source_files
from tests.kit.fake_encoder import WordEncoder, word_pool

WORDS = [f"{a}_{b}" for a in ("red", "blue", "green", "old") for b in ("dog", "cat", "car", "boat", "tree")]


def captions_of(images: list[str]) -> Captions:
    fillers = ("a {} in the park", "the big {}", "some {} near water with people", "{} and sky", "photo of one {}")
    ids = [image for image in images for _ in fillers]
    texts = [filler.format(image.split("_")[i % 2]) for image in images for i, filler in enumerate(fillers)]
    return Captions(ids, texts, "val")


def clip_benchmark_recall(scores: torch.Tensor, owner: torch.Tensor, k: int) -> tuple[float, float]:
    """Restated from CLIP_benchmark's zeroshot_retrieval: scores [texts, images], share of positives found above 0."""
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), owner] = True

    def recall(values: torch.Tensor, pairs: torch.Tensor) -> float:
        chosen = torch.topk(values, k, dim=1)[1]
        hits = torch.nn.functional.one_hot(chosen, values.shape[1]).sum(1).bool() & pairs
        return ((hits.sum(1) / pairs.sum(1)) > 0).float().mean().item()

    return recall(scores, positive), recall(scores.T, positive.T)


def test_both_directions_equal_clip_benchmark() -> None:
    encoder = WordEncoder()
    captions, pool = captions_of(WORDS), word_pool(WORDS, encoder)
    # Distinct texts, so that no two scores are equal and torch's choice among ties plays no part.
    captions = Captions(captions.image_ids, [f"{t} {i}" for i, t in enumerate(captions.captions)], "val")
    measured = retrieval.measure(captions, pool, encoder)
    scores = torch.from_numpy(encoder.texts(captions.captions) @ pool.features(encoder).T)
    owner = torch.from_numpy(pool.find(captions.image_ids))
    for k in (1, 5, 10):
        to_image, to_text = clip_benchmark_recall(scores, owner, k)
        assert measured.metrics[f"text_to_image_recall@{k}"] == pytest.approx(100 * to_image)
        assert measured.metrics[f"image_to_text_recall@{k}"] == pytest.approx(100 * to_text)
    assert measured.notes["captions"] == 100
    assert list(measured.metrics) == [metric.name for metric in retrieval.RETRIEVAL.metrics]


def test_distractors_and_captions_without_image() -> None:
    encoder = WordEncoder()
    pool = word_pool([*WORDS, "sea_fish"], encoder)
    captions = Captions(["red_dog", "gone"], ["red dog", "red dog"], "val")
    measured = retrieval.measure(captions, pool, encoder)
    assert measured.metrics == dict.fromkeys(measured.samples, 100.0)
    wanted = {"images": 21, "images_with_captions": 1, "captions": 1, "captions_without_image": 1}
    assert wanted.items() <= measured.notes.items()
    assert measured.samples["image_to_text_recall@1"].clusters.tolist() == [0]


def test_nothing_in_common_or_another_encoder() -> None:
    encoder = WordEncoder()
    pool = word_pool(WORDS, encoder)
    with pytest.raises(BenchmarkError, match=r"none of the 1 captions \(val\)"):
        retrieval.measure(Captions(["gone"], ["x"], "val"), pool, encoder)
    with pytest.raises(ModelError, match="come from image encoder encoder, the model has other"):
        retrieval.measure(captions_of(WORDS), pool, WordEncoder(encoder="other"))


def test_broken_weights_are_reported() -> None:
    encoder = WordEncoder()
    pool = word_pool(WORDS, encoder)

    class Broken(WordEncoder):
        def texts(self, texts: Sequence[str]) -> np.ndarray:
            return np.full((len(texts), 32), np.nan, np.float32)

    with pytest.raises(ModelError, match="non-finite features for 'a red in the park'"):
        retrieval.measure(captions_of(WORDS), pool, Broken())


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_cocos_captions_have_their_images_beside_their_folder(tmp_path: Path, year: str) -> None:
    images = [{"id": number, "file_name": f"{year}_{number}.jpg"} for number in range(3)]
    captions = [{"image_id": number, "caption": f"dog {number}"} for number in range(3)]
    file = tmp_path / "annotations" / f"captions_val{year}.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"images": images, "annotations": captions}))
    for other in ("2014", "2017"):
        (tmp_path / f"val{other}").mkdir()
        for number in range(3):
            (tmp_path / f"val{other}" / f"{other}_{number}.jpg").touch()
    benchmark = BenchmarkOptions(name="coco", kind="retrieval", path=file.name)
    for path in (file, file.parent):
        assert prepare(benchmark, path).measure(WordEncoder()).notes["images"] == 3
    assert set(source_files("retrieval", file)) == {file, *(tmp_path / f"val{year}").iterdir()}
