"""Captioned images in their published formats, with the images in a tar or folder beside the captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from paraclip_core.clip.images import ImageArchive
from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.pool import ImagePool, folder_pool
from paraclip_core.evaluation.rows import field, read_json_file, records

__all__ = [
    "EVALUATION_SPLITS",
    "Captions",
    "beside",
    "captions_file",
    "image_names",
    "images_beside",
    "load_captions",
    "of_split",
    "pool_of",
]

EVALUATION_SPLITS = ("test", "val")
TABLES = (".csv", ".tsv", ".parquet", ".txt")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Captions:
    """Captions of images: `image_ids[i]` is the image of `captions[i]`."""

    image_ids: Sequence[str]
    captions: Sequence[str]
    split: str
    """Split that they are, or a word on where they come from."""


def captions_file(path: Path) -> Path:
    """The captions file itself, or the one in a folder.

    Raises:
        BenchmarkError: the folder has none, or several.
    """
    if not path.is_dir():
        return path
    found = sorted(p for p in path.iterdir() if p.suffix in (".json", ".jsonl") and not p.name.startswith("."))
    named = [p for p in found if p.name.startswith(("dataset_", "captions"))]
    found = named or found
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise BenchmarkError(
            f"{path}: expected one captions file (.json or .jsonl) or Parquet with pictures, found {names}; name the "
            "file itself"
        )
    return found[0]


def load_captions(path: Path, split: str | None = None) -> Captions:
    """Read a Karpathy JSON, a COCO annotation JSON, or JSONL rows with `image` and `caption` or `captions`.

    Args:
        path: the file.
        split: the split to take; None takes the file's test split, or val where it has no test split.

    Raises:
        BenchmarkError: another format, or no captions of that split; names file, entry and expectation.
    """
    if path.suffix == ".jsonl":
        return of_split(path, [*_jsonl_rows(path)], split)
    if path.suffix.lower() in TABLES:
        raise BenchmarkError(
            f"{path}: expected captions as a Karpathy or COCO annotation .json, as .jsonl with image and caption, or "
            "as Parquet with a column of pictures, binary or with a field `bytes`, beside the captions"
        )
    value = read_json_file(path)
    if not isinstance(value, dict) or not isinstance(value.get("images"), list):
        raise BenchmarkError(f"{path}: no list `images`; expected a Karpathy or COCO annotation JSON")
    if isinstance(value.get("annotations"), list):
        return of_split(path, [*_coco_rows(path, value["images"], value["annotations"])], split)
    return of_split(path, [*_karpathy_rows(path, value["images"])], split)


def of_split(path: Path, rows: list[tuple[str, str, str | None]], split: str | None) -> Captions:
    """The rows (image, caption, split) of one split; rows without a split belong to every split.

    Raises:
        BenchmarkError: there is none; the text lists the splits.
    """
    splits = {row_split for _, _, row_split in rows if row_split is not None}
    chosen = split or next((name for name in EVALUATION_SPLITS if name in splits), "test")
    kept = [(image, caption) for image, caption, row_split in rows if row_split is None or row_split == chosen]
    if not kept:
        raise BenchmarkError(f"{path} has no captions of split {chosen!r}; its splits: {sorted(splits)}")
    return Captions([image for image, _ in kept], [caption for _, caption in kept], chosen if splits else "all")


def images_beside(path: Path) -> Path | None:
    """The tar or folder with the images of a captions file or benchmark folder, None where there is none."""
    folder, stem = (path, path.name) if path.is_dir() else (path.parent, path.stem)
    for name in (f"{stem}.tar", "images.tar", "images", stem, "val2017"):
        if (folder / name).exists() and folder / name != path:
            return folder / name
    tars = sorted(folder.glob("*.tar"))
    if len(tars) == 1:
        return tars[0]
    return folder if any(p.suffix.lower() in PICTURES for p in folder.iterdir()) else None


def beside(path: Path) -> list[Path]:
    """All files that a benchmark at `path` reads: the file and its images, or everything in the folder."""
    files = [path] if path.is_file() else []
    for place in filter(None, (path if path.is_dir() else None, images_beside(path))):
        inside = [place] if place.is_file() else [p for p in place.rglob("*") if p.is_file()]
        # Where images lie loosely beside the file, so may all else, the artifacts that are being written included.
        files += [p for p in inside if p.suffix.lower() in PICTURES] if place == path.parent else inside
    return sorted(set(files))


def pool_of(path: Path, image_ids: Sequence[str]) -> ImagePool:
    """The distinct images of a captions file as a pool, encoded from the tar or folder beside it.

    Raises:
        BenchmarkError: there are no images, or one is missing.
    """
    images = images_beside(path)
    if images is None:
        raise BenchmarkError(f"no images beside {path}; expected images.tar, {path.stem}.tar or a folder `images`")
    ids = list(dict.fromkeys(image_ids))
    names = image_names(images, ids)
    missing = [image_id for image_id in ids if image_id not in names]
    if missing:
        raise BenchmarkError(f"{images} lacks {len(missing)} of {len(ids)} images of {path.name}, first {missing[0]!r}")
    return folder_pool(ids, images, [names[image_id] for image_id in ids])


def image_names(images: Path, ids: Sequence[str]) -> dict[str, str]:
    """Name inside the tar or folder of each image that is there: by its whole name, file name, or a picture's stem.

    Of several with one file name or stem the one that lies least deep is meant.

    Raises:
        BenchmarkError: it lies beside others as deep as itself.
    """
    with ImageArchive(images) as archive:
        names = archive.names()
    # Webdataset's tars have a text beside each picture, of the same stem.
    pictures = [name for name in names if PurePosixPath(name).suffix.lower() in PICTURES]
    whole = {name: [name] for name in names}
    by_file, by_stem = _grouped(names, lambda path: path.name), _grouped(pictures, lambda path: path.stem)
    found = {image_id: whole.get(image_id) or by_file.get(image_id) or by_stem.get(image_id) for image_id in ids}
    return {image_id: _least_deep(images, image_id, meant) for image_id, meant in found.items() if meant}


def _grouped(names: Sequence[str], key: Callable[[PurePosixPath], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(PurePosixPath(name)), []).append(name)
    return groups


def _least_deep(images: Path, image_id: str, names: Sequence[str]) -> str:
    least = min(name.count("/") for name in names)
    meant = [name for name in names if name.count("/") == least]
    if len(meant) > 1:
        raise BenchmarkError(
            f"{images}: image {image_id!r} may be {meant[0]} or {meant[1]}; write the folder to its name, or leave one "
            "of them out"
        )
    return meant[0]


def _karpathy_rows(path: Path, images: list[Any]) -> Iterator[tuple[str, str, str | None]]:
    for number, image in enumerate(images, 1):
        entry = _object(path, "images", number, image)
        name, sentences = field(path, number, entry, "filename"), entry.get("sentences")
        if not isinstance(sentences, list):
            raise BenchmarkError(f"{path}, images entry {number}: no list `sentences`; expected a Karpathy JSON")
        for sentence in sentences:
            text = _object(path, "images", number, sentence).get("raw")
            if isinstance(text, str) and text.strip():
                yield name, field(path, number, {"raw": text}, "raw"), str(entry.get("split", "test"))


def _coco_rows(path: Path, images: list[Any], annotations: list[Any]) -> Iterator[tuple[str, str, str | None]]:
    names: dict[float | str, str] = {}
    for number, image in enumerate(images, 1):
        entry = _object(path, "images", number, image)
        names[_coco_id(path, "images", number, entry, "id")] = field(path, number, entry, "file_name")
    for number, annotation in enumerate(annotations, 1):
        entry = _object(path, "annotations", number, annotation)
        image_id = _coco_id(path, "annotations", number, entry, "image_id")
        if image_id not in names:
            raise BenchmarkError(f"{path}, annotations entry {number}: image_id {image_id!r} is unknown")
        yield names[image_id], field(path, number, entry, "caption"), None


def _coco_id(path: Path, where: str, number: int, entry: dict[str, Any], name: str) -> float | str:
    value = entry.get(name)
    if not isinstance(value, int | float | str):
        raise BenchmarkError(f"{path}, {where} entry {number}: {name} is {value!r}, expected a number or a text")
    return value


def _jsonl_rows(path: Path) -> Iterator[tuple[str, str, str | None]]:
    for number, row in records(path):
        image = field(path, number, row, "image", "filename", "file_name", "image_id")
        split = row.get("split")
        texts = row.get("captions", row.get("caption"))
        for text in texts if isinstance(texts, list) else [texts]:
            yield image, field(path, number, {"caption": text}, "caption"), None if split is None else str(split)


def _object(path: Path, where: str, number: int, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BenchmarkError(f"{path}, {where} entry {number}: a {type(value).__name__}, expected an object")
    return value
