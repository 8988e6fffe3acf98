"""Images inside of Parquet, through ingest and features: the same features as of the same files in a folder."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import paraclip.tasks.stages.features as stage
from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.features import FeatureStore
from paraclip.storage.parquet import read_table
from paraclip.tasks.run.dag import carry_out
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.features import FEATURES
from paraclip.tasks.stages.ingest import INGEST
from paraclip_core.config import DataOptions, FeatureOptions, ModelOptions, RunOptions, Settings, SourceOptions

SMALL = ModelOptions(embed_dim=16, text_width=64, text_layers=1)
IMAGES = 9


@pytest.fixture(scope="module", autouse=True)
def small_shards() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "SHARD_IMAGES", 4)
        yield


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    def jpeg(seed: int) -> bytes:
        file = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((128, 96)).save(file, "JPEG")
        return file.getvalue()

    return [jpeg(seed) for seed in range(IMAGES)]


def _settings(root: Path, **source: Any) -> Settings:
    return Settings(
        data=DataOptions(root=str(root), sources=(SourceOptions(**source),)),
        features=FeatureOptions(batch_size=3),
        model=SMALL,
        run=RunOptions(device="cpu", threads=1),
    )


def _both(settings: Settings, root: Path) -> tuple[Artifact, Artifact]:
    store = ArtifactStore(root)
    ingest = carry_out(INGEST, Draft("ingest", "e" * 32, INGEST.version, {}, {}), Run(settings, store), {})
    features = Draft("features", "f" * 32, FEATURES.version, {}, {})
    return ingest, carry_out(FEATURES, features, Run(settings, store), {"ingest": ingest})


def _files(artifact: Artifact) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in artifact.manifest.files.items()}


def _texts(number: int) -> list[str]:
    return [f"a photo of number {number}", f"the number {number} in a photo"]


@pytest.fixture(scope="module")
def loose(photos: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    """Ingest and features of loose files that are called what they are, so that the index can be compared, too."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("loose")
    (root / "pics").mkdir()
    rows = []
    for number, photo in enumerate(photos):
        (root / f"pics/{number}.jpg").write_bytes(photo)
        image = hashlib.blake2b(photo, digest_size=16).hexdigest()
        rows.append({"image_id": image, "image": f"{number}.jpg", "caption": _texts(number)})
    (root / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return _both(_settings(root, path="captions.jsonl", images="pics"), root / "root")


def _by_datasets(path: Path, photos: list[bytes], captions: list[Any]) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the package datasets (pip install -e '.[dev]')")
    text: Any = datasets.Value("string")
    features = datasets.Features(image=datasets.Image(), text=[text] if isinstance(captions[0], list) else text)
    rows = {"image": [{"bytes": photo, "path": None} for photo in photos], "text": captions}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def _by_pyarrow(path: Path, photos: list[bytes], captions: list[Any]) -> None:
    table = pa.table({"image": pa.array(photos, pa.large_binary()), "caption": captions})
    pq.write_table(table, path, row_group_size=5)


@pytest.mark.parametrize(("write", "repeated"), [(_by_datasets, False), (_by_pyarrow, True)])
def test_features_are_those_of_loose_files(
    tmp_path: Path, photos: list[bytes], loose: tuple[Artifact, Artifact], write: Any, repeated: bool
) -> None:
    if repeated:
        write(tmp_path / "a.parquet", [p for p in photos for _ in "ab"], [t for n in range(IMAGES) for t in _texts(n)])
    else:
        write(tmp_path / "a.parquet", photos, [_texts(number) for number in range(IMAGES)])
    ingest, features = _both(_settings(tmp_path, path="a.parquet"), tmp_path / "root")
    assert _files(features) == _files(loose[1])
    same = ["caption_id", "image_id", "caption"]
    found, wanted = (read_table(artifact.path / "captions").select(same) for artifact in (ingest, loose[0]))
    assert found.equals(wanted) and found.num_rows == 2 * IMAGES


def test_damaged_and_absent_pictures_are_rejected_by_file_and_row(tmp_path: Path, photos: list[bytes]) -> None:
    given = [photos[0], photos[1][:200], None, b"no image", photos[4]]
    pq.write_table(
        pa.table({"image": pa.array(given), "caption": [_texts(n) for n in range(5)]}), tmp_path / "a.parquet"
    )
    ingest, features = _both(_settings(tmp_path, path="a.parquet"), tmp_path / "root")
    absent = read_table(ingest.path / "rejects").select(["source", "source_row", "reason"]).to_pylist()
    assert absent == [{"source": "a.parquet", "source_row": 2, "reason": "missing_field"}]
    rejects = read_table(features.path / "rejects")
    assert rejects["source"].to_pylist() == ["a.parquet"] * 2 and rejects["source_row"].to_pylist() == [1, 3]
    assert rejects["reason"].to_pylist() == ["corrupt_image"] * 2
    assert "a.parquet/image[000000001]/" in rejects["detail"][0].as_py()
    assert len(FeatureStore(features.path)) == 2
