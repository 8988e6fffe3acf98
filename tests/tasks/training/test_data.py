"""What is held out, and that it stays so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paraclip.storage.artifacts import Artifact
from paraclip.storage.features import write_index
from paraclip.tasks.models import base_held_out
from paraclip.tasks.training.data import Images, caption_rows, hold_out, paraphrase_rows, validation_set
from paraclip.tasks.training.log_data import searched_images
from paraclip_core.clip.encode import tokenize
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.ragged import Ragged
from paraclip_core.config import Settings
from paraclip_core.tables import FEATURE_INDEX
from paraclip_core.training.data import CAPTION, TEXTS, TrainingRows, spool_rows, token_keys
from paraclip_core.training.validation import ValidationSet
from tests.kit import encoders


@pytest.fixture
def captions(sources: dict[str, Artifact]) -> Path:
    return sources["ingest"].path / "captions"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    return encoders.model_of("clip", tmp_path_factory.mktemp("clip"))


@pytest.fixture
def images(sources: dict[str, Artifact]) -> Images:
    return Images(sources["features"].path)


def test_held_out_images_are_training_images_and_never_trained_on(
    sources: dict[str, Artifact], captions: Path, images: Images, clip: ClipModel
) -> None:
    held_out = hold_out(captions, images, 0.3)
    kept = caption_rows(captions, images, clip, keep=held_out.trains)
    trained = {int(row) for batch in kept for row in batch["image_rows"]}
    assert len(held_out.gallery) > 5
    assert trained.isdisjoint(held_out.gallery.tolist())
    assert len(trained) + len(held_out.gallery) == 72  # the other 8 images are of the split `val`
    validation = validation_set(captions, held_out, clip, sources["paraphrase_2"].path / "paraphrases")
    assert validation.targets is not None and validation.pair_targets is not None
    assert len(validation.captions) == len(validation.pair_targets) == 2 * len(held_out.gallery)
    assert set(validation.targets.tolist()) == set(range(len(held_out.gallery)))


def test_a_caption_that_is_trained_on_with_another_image_does_not_choose(
    sources: dict[str, Artifact], captions: Path, images: Images, clip: ClipModel, tmp_path: Path
) -> None:
    """Its paraphrases are trained on, too."""
    held_out, paraphrases = hold_out(captions, images, 0.3), sources["paraphrase_2"].path / "paraphrases"
    rows = spool_rows(tmp_path / "rows", TEXTS, paraphrase_rows(paraphrases, images, clip, keep=held_out.trains))
    whole = validation_set(captions, held_out, clip, paraphrases)
    assert whole.first is not None and whole.second is not None
    every = len(whole.first)

    def pairs(number: int) -> ValidationSet:
        """The pairs if the first `number` held-out captions are trained on as well."""
        assert whole.first is not None
        texts = Ragged.concatenate([rows.texts[CAPTION], whole.first.take(range(number))])
        return validation_set(captions, held_out, clip, paraphrases, trained=texts)

    for number in (0, 5):
        left = pairs(number)
        assert left.first is not None and left.second is not None and left.pair_targets is not None
        own = range(number, every)
        assert token_keys(left.first).tolist() == token_keys(whole.first.take(own)).tolist()
        assert token_keys(left.second).tolist() == token_keys(whole.second.take(own)).tolist()
        assert len(left.pair_targets) == every - number and len(left.captions) == every
    # The few that would be left cannot choose.
    assert len(pairs(every - 3).first or ()) == every


def test_an_index_is_searched_in_as_many_rows_as_it_may_be() -> None:
    needed = np.array([17, 3, 17, 29_999])
    for images in (10, 20_000, 20_001, 30_000):
        rows = searched_images(images, needed[needed < images], 20_000)
        assert len(rows) == min(images, 20_000) and (np.diff(rows) > 0).all() and rows[-1] < images
        assert np.isin(needed[needed < images], rows).all()
    few = searched_images(1000, needed[:2], 1)
    assert few.tolist() == [3, 17]
    # A row that is appended takes the place of one other at most.
    before, after = (searched_images(images, needed[:0], 500) for images in (1000, 1001))
    assert len(np.setdiff1d(before, after)) <= 1


def names_of(rows: TrainingRows) -> list[str]:
    assert rows.ids is not None
    return [row.tobytes().hex() for row in rows.ids]


def test_rows_know_which_captions_they_are(
    sources: dict[str, Artifact], captions: Path, images: Images, clip: ClipModel, tmp_path: Path
) -> None:
    paraphrases, held_out = sources["paraphrase_2"].path / "paraphrases", hold_out(captions, images, 0.3)
    stored = {row["caption_id"].hex(): row for row in pq.read_table(paraphrases).to_pylist()}
    stream = paraphrase_rows(paraphrases, images, clip, keep=held_out.trains)
    rows = spool_rows(tmp_path / "rows", ("caption", "paraphrase_2"), stream)
    texts, names = rows.texts["paraphrase_2"], names_of(rows)
    assert len(set(names)) == len(rows) > 50
    for number, name in enumerate(names):
        assert texts.take([number]).values.tolist() == tokenize(clip, [stored[name]["paraphrase_2"]]).values.tolist()
    base = spool_rows(tmp_path / "base", ("caption",), caption_rows(captions, images, clip))
    assert {row["caption_id"].hex() for row in pq.read_table(captions).to_pylist()} > set(names_of(base))


def test_shares_are_nested_and_alpha_is_chosen_on_images_that_the_base_has_not_seen(
    captions: Path, images: Images
) -> None:
    small, large = hold_out(captions, images, 0.1), hold_out(captions, images, 0.4)
    assert set(small.gallery.tolist()) < set(large.gallery.tolist())
    for share in (0.05, 0.4):
        settings = Settings.model_validate({"finetune": {"validation": share}})
        base, tuned = hold_out(captions, images, base_held_out(settings)), hold_out(captions, images, share)
        assert (
            set(tuned.gallery.tolist()) <= set(np.flatnonzero(base.all).tolist()) and base.all.sum() >= small.all.sum()
        )
    # One image at least is held out.
    one = hold_out(captions, images, 1e-9)
    assert len(one.gallery) == 1


def test_equal_pictures_are_one_image(tmp_path: Path) -> None:
    pictures = [bytes([n] * 8 + [m] * 8) for n, m in ((5, 1), (2, 2), (5, 1), (5, 0), (2, 2), (9, 9))]
    columns = {"image_id": list("abcdef"), "shard": [0] * 6, "row": range(6), "pixels": pictures}
    write_index(
        tmp_path, [pa.table(columns, schema=FEATURE_INDEX), pa.table(columns, schema=FEATURE_INDEX).slice(0, 0)]
    )
    images = Images(tmp_path)
    assert images.keys.tolist() == [0, 1, 0, 3, 1, 5]
    assert images.places[5] == pytest.approx(9 / 255, rel=1e-6)
    assert images.find(pa.array(["f", None, "zz", "a"])).tolist() == [5, -1, -1, 0]
