"""What is held out, and that it stays so."""

from __future__ import annotations

import numpy as np

from storage.artifacts import Artifact
from tasks.training.data import Images, caption_rows, hold_out, validation_set


def test_held_out_images_are_training_images_and_never_trained_on(sources: dict[str, Artifact]) -> None:
    captions, images = sources["ingest"].path / "captions", Images(sources["features"].path)
    held_out = hold_out(captions, images, 0.3)
    trained = {int(row) for _, rows in caption_rows(captions, images, keep=held_out.trains) for row in rows}
    assert len(held_out.gallery) > 5
    assert trained.isdisjoint(held_out.gallery.tolist())
    assert len(trained) + len(held_out.gallery) == 72  # the other 8 images are of the split `val`
    found = validation_set(captions, held_out, sources["paraphrase_2"].path / "paraphrases")
    assert found.pair_targets is not None
    assert len(found.captions) == len(found.pair_targets) == 2 * len(held_out.gallery)
    assert set(found.targets.tolist()) == set(range(len(held_out.gallery)))


def test_a_smaller_share_is_part_of_a_larger_one(sources: dict[str, Artifact]) -> None:
    captions, images = sources["ingest"].path / "captions", Images(sources["features"].path)
    small, large = hold_out(captions, images, 0.1), hold_out(captions, images, 0.4)
    assert set(small.gallery.tolist()) < set(large.gallery.tolist())


def test_alpha_is_chosen_on_images_that_the_base_has_not_seen(sources: dict[str, Artifact]) -> None:
    captions, images = sources["ingest"].path / "captions", Images(sources["features"].path)
    base, tuned = hold_out(captions, images, 0.1), hold_out(captions, images, 0.4, unseen=0.1)
    assert np.array_equal(base.gallery, tuned.gallery)
    assert tuned.all.sum() > base.all.sum()


def test_one_image_at_least_is_held_out(sources: dict[str, Artifact]) -> None:
    captions, images = sources["ingest"].path / "captions", Images(sources["features"].path)
    base = hold_out(captions, images, 1e-9)
    assert len(base.gallery) == 1
    assert np.array_equal(hold_out(captions, images, 0.4, unseen=1e-9).gallery, base.gallery)
