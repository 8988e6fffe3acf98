"""The features stage: every image once, resumable at a shard, corrupt images told and left out."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft, Manifest
from paraclip.storage.features import FeatureStore
from paraclip.storage.parquet import read_table, write_table
from paraclip.tasks.features import encode
from paraclip.tasks.run.execute import execute
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.features import FEATURES, images_to_encode
from paraclip.tasks.stages.ingest import INGEST
from paraclip_core import tables
from paraclip_core.captions.options import DataOptions, SourceOptions
from paraclip_core.clip.built_in import built_in_clip
from paraclip_core.clip.encode import encode_images
from paraclip_core.clip.export import save_release
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.model import image_encoder_hash
from paraclip_core.clip.options import FeatureOptions, ModelOptions
from paraclip_core.config import RunOptions, Settings
from paraclip_core.errors import ConfigError, InputError, ModelError
from tests.tasks.builders import captions_of

SMALL = ModelOptions(embed_dim=16, text_width=64, text_layers=1)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def photos(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with nine real photographs in a tar."""
    root = tmp_path_factory.mktemp("data")
    with ImageArchive(data_root / "flickr8k/images_128.tar") as images:
        _tar(root / "photos.tar", {name: images.read(name) for name in images.names()[:9]})
    return root


def _tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _settings(root: Path, images: str = "photos.tar", batch: int = 3, **model: Any) -> Settings:
    return Settings(
        data=DataOptions(root=str(root), sources=(SourceOptions(path="captions.jsonl", images=images),)),
        features=FeatureOptions(batch_size=batch),
        model=ModelOptions(**{**SMALL.model_dump(), **model}),
        run=RunOptions(device="cpu", threads=1),
    )


def _ingested(folder: Path, rows: Sequence[tuple[str | None, str | None, str | None]], parts: int = 1) -> Artifact:
    """An ingest artifact whose captions have these image_id, image_path and images."""
    table = captions_of(
        {"image_id": image_id, "image_path": name, "images": images, "caption": f"caption {n}"}
        for n, (image_id, name, images) in enumerate(rows)
    )
    size = max(1, -(-table.num_rows // parts))
    for part in range(parts):
        write_table(folder / "captions" / f"part-{part:05d}.parquet", table.slice(part * size, size))
    return Artifact(folder, Manifest("ingest", "0" * 32, 1, {}, {}, files={}, metrics={}, wall_seconds=0.0, created=""))


def _names(root: Path) -> list[str]:
    with ImageArchive(root / "photos.tar") as images:
        return images.names()


def _rows(root: Path) -> list[tuple[str | None, str | None, str | None]]:
    """Two captions of each image, one caption without an image among them."""
    rows: list[tuple[str | None, str | None, str | None]] = [(n, n, "photos.tar") for n in _names(root)]
    return [*rows[:5], (None, None, None), *rows[::-1]]


def _run(settings: Settings, ingest: Artifact, root: Path, fingerprint: str = "f" * 32) -> Artifact:
    draft = Draft("features", fingerprint, FEATURES.version, {}, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "SHARD_IMAGES", 4)
        return execute(FEATURES, draft, Run(settings, ArtifactStore(root)), {"ingest": ingest})


def _all(store: FeatureStore) -> np.ndarray:
    return store.view()[np.arange(len(store))]


def _files(artifact: Artifact) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in artifact.manifest.files.items()}


def test_every_image_once_in_the_order_of_first_mention(photos: Path, tmp_path: Path) -> None:
    rows = _rows(photos)
    # The name of a folder above the captions is none of their columns.
    captions = _ingested(tmp_path / "images=1" / "ingest", rows, parts=3)
    artifact = _run(_settings(photos), captions, tmp_path / "root")
    store = FeatureStore(artifact.path)
    names = _names(photos)
    assert store.image_ids == [*names[:5], *names[:4:-1]]
    clip = built_in_clip(SMALL)
    with ImageArchive(photos / "photos.tar") as images:
        expected = encode_images(clip, (images.open(name) for name in store.image_ids))
    np.testing.assert_allclose(_all(store).astype(float), expected.astype(float), atol=2e-3)
    metrics = artifact.manifest.metrics
    assert metrics["image_encoder_hash"] == image_encoder_hash(clip)
    assert (metrics["images"], metrics["rejected"], metrics["shards"], metrics["embed_dim"]) == (9, 0, 3, 16)
    assert pq.read_schema(artifact.path / "index.parquet").equals(tables.FEATURE_INDEX)
    assert read_table(artifact.path / "rejects").num_rows == 0


def test_corrupt_and_missing_images_are_rejected_by_name(photos: Path, tmp_path: Path) -> None:
    names = _names(photos)[:4]
    with ImageArchive(photos / "photos.tar") as images:
        members = {name: images.read(name) for name in names}
    members[names[1]] = members[names[1]][:200]
    members[names[2]] = b"not an image"
    _tar(tmp_path / "photos.tar", members)
    rows = [(f"id{n}", name, "photos.tar") for n, name in enumerate([*names, "../../etc/passwd"])]
    artifact = _run(_settings(tmp_path), _ingested(tmp_path / "ingest", rows), tmp_path / "root")
    store = FeatureStore(artifact.path)
    assert store.image_ids == ["id0", "id3"]
    assert store.view().shape == (2, 16)
    rejects = read_table(artifact.path / "rejects")
    assert rejects.schema.equals(tables.REJECTS)
    assert rejects["reason"].to_pylist() == ["corrupt_image", "corrupt_image", "missing_image"]
    assert "id1" in rejects["detail"][0].as_py() and names[1] in rejects["detail"][0].as_py()
    assert str(tmp_path) not in str(rejects.to_pylist())


def test_without_images_the_stage_stops_or_is_empty(tmp_path: Path) -> None:
    _tar(tmp_path / "photos.tar", {"a.jpg": b"", "b.jpg": b"\x89PNG\r\n"})
    unreadable = _ingested(tmp_path / "unreadable", [("a", "a.jpg", "photos.tar"), ("b", "b.jpg", "photos.tar")])
    with pytest.raises(InputError, match=r"none of the 2 images can be read.*'a'"):
        _run(_settings(tmp_path), unreadable, tmp_path / "root")
    none = _ingested(tmp_path / "none", [(None, None, None), ("a", None, None)])
    store = FeatureStore(_run(_settings(tmp_path), none, tmp_path / "root", "e" * 32).path)
    assert store.image_ids == [] and store.view().shape == (0, 16)
    assert store.find(["a", None]).tolist() == [-1, -1]


def test_an_interrupted_run_goes_on_at_the_next_shard_and_gives_the_same_bytes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest, settings = _ingested(tmp_path / "ingest", _rows(photos)), _settings(photos)
    whole = _run(settings, ingest, tmp_path / "whole")
    write = encode.write_table

    def interrupted(path: Path, table: pa.Table) -> None:
        # The second shard's matrix is written by then, but not marked as finished.
        if path.name == "index-00001.parquet":
            raise KeyboardInterrupt
        write(path, table)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(encode, "write_table", interrupted)
        _run(settings, ingest, tmp_path / "cut")
    finished = tmp_path / "cut/work/features" / ("f" * 32) / "out/features/shard-00000.npy"
    before = finished.stat().st_mtime_ns
    finished.with_name(".shard-00002.npy.123.tmp").write_bytes(b"half a shard")
    resumed = _run(settings, ingest, tmp_path / "cut")
    assert _files(resumed) == _files(whole)
    assert (resumed.path / "features/shard-00000.npy").stat().st_mtime_ns == before


def test_bytes_are_the_same_whether_features_are_encoded_or_used_again(photos: Path, tmp_path: Path) -> None:
    rows = _rows(photos)
    first = _run(_settings(photos), _ingested(tmp_path / "all but one", rows[:9]), tmp_path / "root", "a" * 32)
    assert first.manifest.metrics["encoded"] == len({image for image, _, _ in rows[:9]} - {None}) == 8
    # One more image before the others, so that rows, shards and batches are others, too.
    whole = _ingested(tmp_path / "all", rows[::-1])
    again = _run(_settings(photos), whole, tmp_path / "root", "b" * 32)
    alone = _run(_settings(photos), whole, tmp_path / "elsewhere")
    assert [artifact.manifest.metrics["encoded"] for artifact in (again, alone)] == [1, 9]
    assert _files(again) == _files(alone)


def test_a_plan_counts_the_images_that_the_stage_encodes(photos: Path, tmp_path: Path) -> None:
    store, (one, two, three) = ArtifactStore(tmp_path / "root"), ("1.jpg", "2.jpg", "3.jpg")
    (tmp_path / "pics").mkdir()

    def carried(captions: dict[str, str], **model: Any) -> tuple[int | None, int]:
        """How many images are to be encoded, and how many are."""
        rows = [{"image": image, "caption": caption} for image, caption in captions.items()]
        (tmp_path / "captions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        run = Run(_settings(tmp_path, images="pics", **model), store)
        ingest = execute(INGEST, run.node("ingest").draft, run, {})
        expected = images_to_encode(run, ingest.path / "captions")
        made = execute(FEATURES, run.node("features").draft, run, {"ingest": ingest})
        return expected, made.manifest.metrics["encoded"]

    with ImageArchive(photos / "photos.tar") as images:
        *pictures, fourth = (images.read(name) for name in images.names()[:4])
    for name, picture in zip((one, two, three), pictures, strict=True):
        (tmp_path / "pics" / name).write_bytes(picture)
    assert carried({one: "a dog runs", two: "a cat sits"}) == (None, 2)
    assert carried({one: "a brown dog runs", two: "a cat sits"}) == (0, 0)
    assert carried({one: "a dog runs", two: "a cat sits", three: "a bird flies"}) == (1, 1)
    assert carried({one: "a dog runs", two: "a cat sits"}, embed_dim=32) == (None, 2)
    # Under another name in a folder with other contents.
    (tmp_path / "pics" / one).rename(tmp_path / "pics" / "renamed.jpg")
    (tmp_path / "pics" / "broken.jpg").write_text("no image")
    captions = {
        "renamed.jpg": "a dog runs",
        two: "a cat sits",
        "gone.jpg": "nothing is there",
        "broken.jpg": "no image",
    }
    assert carried(captions) == (1, 0), "that it is no image is seen when it is decoded"
    # A name tells nothing of an image.
    (tmp_path / "pics" / two).write_bytes(fourth)
    assert carried({two: "a cat sits"}) == (1, 1)
    # Damaged artifacts cost encoding again, and stop nothing.
    *earlier, last = store.list("features")
    for artifact in earlier:
        (artifact.path / "index.parquet").write_bytes(b"damaged")
    for shard in last.path.glob("features/*"):
        shard.unlink()
    assert carried({two: "a dog sits"}) == (1, 1)


def test_damaged_weights_are_reported_with_the_image(photos: Path, tmp_path: Path) -> None:
    clip = built_in_clip(SMALL)
    visual: Any = clip.model.visual
    save_release(clip, tmp_path / "model", "card")
    with torch.no_grad():
        visual.head.proj.weight.fill_(float("nan"))
    ingest = _ingested(tmp_path / "ingest", [("the id", _names(photos)[0], "photos.tar")])
    with pytest.raises(ModelError, match="not finite"):
        save_release(clip, tmp_path / "damaged", "card")
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "model/open_clip_model.safetensors")
    # Each is a number, and the sum of their products none.
    weights["visual.head.proj.weight"].fill_(3e38)
    save_file(weights, tmp_path / "model/open_clip_model.safetensors")
    with pytest.raises(ModelError, match="'the id'"):
        _run(_settings(photos, base=f"local-dir:{tmp_path / 'model'}"), ingest, tmp_path / "root")


def test_the_fingerprint_follows_contents_and_image_encoder(photos: Path, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "hashes")
    settings = _settings(photos)
    sources = FEATURES.sources(Run(settings, store))
    assert list(sources) == ["images/photos.tar"]
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.copy(photos / "photos.tar", moved / "photos.tar")
    assert FEATURES.sources(Run(_settings(moved), store)) == sources
    folder = moved / "folder"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    one = FEATURES.sources(Run(_settings(moved, images="folder"), store))
    Image.new("RGB", (8, 8), "red").save(folder / "b.png")
    assert FEATURES.sources(Run(_settings(moved, images="folder"), store)) != one
    with pytest.raises(ConfigError, match=r"data\.sources\[0\]\.images"):
        FEATURES.sources(Run(_settings(moved, images="absent.tar"), store))
    same = FEATURES.options(Run(settings))
    assert FEATURES.options(Run(_settings(photos, batch=64, text_layers=2))) == same
    assert FEATURES.options(Run(_settings(photos, embed_dim=32))) != same
    here, there = (Run(_settings(photos, base=base)) for base in ("local-dir:/a", "/b"))
    assert FEATURES.options(here) == FEATURES.options(there)


# Pictures inside of Parquet


def _both(root: Path, **source: Any) -> tuple[Artifact, Artifact]:
    """Ingest and features of a source."""
    data = DataOptions(root=str(root), sources=(SourceOptions(**source),))
    settings = _settings(root).model_copy(update={"data": data})
    draft = Draft("ingest", "e" * 32, INGEST.version, {}, {})
    ingest = execute(INGEST, draft, Run(settings, ArtifactStore(root / "root")), {})
    return ingest, _run(settings, ingest, root / "root")


def _texts(number: int) -> list[str]:
    return [f"a photo of number {number}", f"the number {number} in a photo"]


def _by_datasets(path: Path, pictures: list[bytes]) -> None:
    """A row an image, with its captions in a list."""
    datasets = pytest.importorskip("datasets", reason="needs the package datasets (pip install -e '.[dev]')")
    features = datasets.Features(image=datasets.Image(), text=[datasets.Value("string")])
    rows = {"image": [{"bytes": each, "path": None} for each in pictures], "text": [*map(_texts, range(len(pictures)))]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def _by_pyarrow(path: Path, pictures: list[bytes]) -> None:
    """A row a caption, with the image's bytes in each."""
    captions = [text for number in range(len(pictures)) for text in _texts(number)]
    twice = [picture for picture in pictures for _ in range(2)]
    pq.write_table(pa.table({"image": pa.array(twice, pa.large_binary()), "caption": captions}), path, row_group_size=5)


def test_features_of_pictures_in_parquet_are_those_of_loose_files(photos: Path, tmp_path: Path) -> None:
    with ImageArchive(photos / "photos.tar") as images:
        pictures = [images.read(name) for name in images.names()]
    loose = tmp_path / "loose"
    (loose / "pics").mkdir(parents=True)
    rows = []
    for number, picture in enumerate(pictures):
        (loose / f"pics/{number}.jpg").write_bytes(picture)
        # Called what it is, so that the index can be compared, too.
        image = hashlib.blake2b(picture, digest_size=16).hexdigest()
        rows.append({"image_id": image, "image": f"{number}.jpg", "caption": _texts(number)})
    (loose / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted, expected = _both(loose, path="captions.jsonl", images="pics")
    same = ["caption_id", "image_id", "caption"]
    for write in (_by_datasets, _by_pyarrow):
        folder = tmp_path / write.__name__
        folder.mkdir()
        write(folder / "a.parquet", pictures)
        ingest, features = _both(folder, path="a.parquet")
        assert _files(features) == _files(expected)
        ingested, captions = (read_table(artifact.path / "captions").select(same) for artifact in (ingest, wanted))
        assert ingested.equals(captions) and ingested.num_rows == 2 * len(pictures)


def test_damaged_and_absent_pictures_are_rejected_by_file_and_row(photos: Path, tmp_path: Path) -> None:
    with ImageArchive(photos / "photos.tar") as images:
        one, two, three = (images.read(name) for name in images.names()[:3])
    given = [one, two[:200], None, b"no image", three]
    table = pa.table({"image": pa.array(given), "caption": [_texts(number) for number in range(5)]})
    pq.write_table(table, tmp_path / "a.parquet")
    ingest, features = _both(tmp_path, path="a.parquet")
    absent = read_table(ingest.path / "rejects").select(["source", "source_row", "reason"]).to_pylist()
    assert absent == [{"source": "a.parquet", "source_row": 2, "reason": "missing_field"}]
    rejects = read_table(features.path / "rejects")
    assert rejects["source"].to_pylist() == ["a.parquet"] * 2 and rejects["source_row"].to_pylist() == [1, 3]
    assert rejects["reason"].to_pylist() == ["corrupt_image"] * 2
    assert "a.parquet/image[000000001]/" in rejects["detail"][0].as_py()
    assert len(FeatureStore(features.path)) == 2
