"""The choice of held-out captions: one for each image, a thousand at most, mostly the same when images are added."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraclip_core.paraphrase.held_out import MOST_IMAGES, choose_captions, choose_queries
from paraclip_core.paraphrase.step_tables import INPUT_COLUMNS
from paraclip_core.tables import CAPTIONS, QUERY_LOG, text_hash


def row(image: str | None, caption: str, split: str = "val", **changed: Any) -> dict[str, Any]:
    same = {"caption_raw": caption, "license": "x", "source": "x", "source_row": 0}
    place = {"image_id": image, "image_path": image, "images": "images.tar"}
    return {"caption_id": text_hash(image, caption), "caption": caption, "split": split, **same, **place, **changed}


def chosen(folder: Path, rows: Iterable[dict[str, Any]], most: int = MOST_IMAGES, split: str = "val") -> dict[str, str]:
    """Image → caption."""
    pq.write_table(pa.Table.from_pylist(list(rows), CAPTIONS), folder / "part.parquet")
    batch = choose_captions([str(folder / "part.parquet")], split, most)
    assert batch.schema == pa.schema([CAPTIONS.field(name) for name in INPUT_COLUMNS[1]])
    images = batch["image_id"].to_pylist()
    assert len(set(images)) == len(images)
    return dict(zip(images, batch["caption"].to_pylist(), strict=True))


IMAGES = st.dictionaries(st.integers(0, 999).map("i{}".format), st.integers(1, 3), min_size=1, max_size=40)


def rows_of(images: dict[str, int]) -> list[dict[str, Any]]:
    return [row(image, f"{image} seen {number}") for image, count in images.items() for number in range(count)]


@settings(max_examples=20)
@given(before=IMAGES, added=IMAGES, most=st.integers(1, 30), shuffle=st.randoms(use_true_random=False))
def test_one_caption_an_image_and_new_images_take_the_place_of_as_many(
    tmp_path_factory: pytest.TempPathFactory, before: dict[str, int], added: dict[str, int], most: int, shuffle: Any
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    first = chosen(folder, rows_of(before), most)
    assert len(first) == min(most, len(before)) and all(caption.startswith(f"{i} ") for i, caption in first.items())
    # Neither the order of rows nor their number decides.
    rows = rows_of({**added, **before})
    shuffle.shuffle(rows)
    second = chosen(folder, rows, most)
    new = second.keys() - before.keys()
    assert new <= added.keys()
    assert all(second[image] == first[image] for image in first.keys() & second.keys())
    # Only new images push others out.
    assert len(first.keys() - second.keys()) == len(new) - (len(second) - len(first))
    assert second.keys() - new <= first.keys()


def test_a_thousand_images_at_most(tmp_path: Path) -> None:
    rows = [row(f"{number}.png", f"picture {number}") for number in range(1300)]
    first = chosen(tmp_path, rows[:1200])
    assert len(first) == 1000
    # A twelfth more images changes a twelfth of them.
    assert 60 < len(chosen(tmp_path, rows).keys() - first.keys()) < 100
    # As many as there are new training captions make place for others.
    trained = [row(None, f"training caption {number}", split="train") for number in range(150)]
    for count in (1, 150):
        assert len(chosen(tmp_path, rows[:1200] + trained[:count]).keys() - first.keys()) == count


def test_captions_without_an_image_of_other_splits_and_those_trained_on_are_left_out(tmp_path: Path) -> None:
    rows = [
        row("a", "a red dog"),
        row(None, "no image"),
        row("b", "no path", image_path=None),
        row("c", "no folder", images=None),
        row("d", "of the test split", "test"),
        row("e", "trained on"),
        row("f", "trained on", "train"),
    ]
    assert chosen(tmp_path, rows) == {"a": "a red dog"}
    assert chosen(tmp_path, rows, split="train") == {"f": "trained on"}
    assert chosen(tmp_path, rows[1:4]) == {}


def test_queries_of_a_log_are_drawn_by_how_often_they_were_asked(tmp_path: Path) -> None:
    counts = {f"query number {n}": 1000 if n < 30 else 1 for n in range(3000)}
    rows = [{**row(None, text), "count": count} for text, count in counts.items()]
    rows.append({**row(None, "query number 3", split="train"), "count": 5})
    pq.write_table(pa.Table.from_pylist(rows, QUERY_LOG), tmp_path / "part.parquet")
    table = choose_queries([str(tmp_path / "part.parquet")], "val", 200)
    texts, frequencies = table["caption"].to_pylist(), table["frequency"].to_pylist()
    frequent = [text for text in texts if counts[text] > 1]
    assert len(texts) == len(set(texts)) == 200 and len(frequent) == 29, "what is trained on is left out"
    assert {"head", "body", "tail"} == set(frequencies)
    assert all(f != "head" for f, t in zip(frequencies, texts, strict=True) if counts[t] == 1)
    smaller = choose_queries([str(tmp_path / "part.parquet")], "val", 100)["caption"].to_pylist()
    assert smaller == texts[:100]
