"""What training and validation share is counted by id, by content and by caption, and too much of it is refused."""

from __future__ import annotations

import pyarrow as pa
import pytest

from paraclip_core import tables
from paraclip_core.captions.leakage import SHARED_COLUMNS, Shared, find_shared
from paraclip_core.errors import InputError


def test_ids_contents_and_captions() -> None:
    rows = [("a", "pics", "a dog", "train"), ("b", "pics", "a cat", "train"), (None, None, "a cow", "train")]
    rows += [("b", "pics", "a hen", "val"), ("d", "pics", "a cat", "test"), ("e", "pics", "a fox", "val")]
    rows += [("d", "pics", "an owl", "val"), ("b", None, "an ox", "val")]
    schema = pa.schema([tables.CAPTIONS.field(name) for name in SHARED_COLUMNS])
    plain = [dict(zip(SHARED_COLUMNS, row, strict=True)) for row in rows]
    batches = [pa.RecordBatch.from_pylist(plain[n : n + 2], schema) for n in range(0, len(plain), 2)]
    unseen: list[str] = []
    shared = find_shared(lambda: batches, lambda images: (unseen.extend(images), (1, 2))[1])
    assert unseen == ["d", "e"]
    assert shared == Shared(images=3, by_id=1, captions=5, equal_captions=1, compared=2, by_content=1)
    assert shared.notices == [
        "1 of 3 validation images are trained on, too, by their ids",
        "1 of 2 validation images have the contents of a training image",
        "1 of 5 validation captions are training captions, too",
    ]
    with pytest.raises(InputError, match=r"1 of 3 .*data\.held_out"):
        shared.check()


@pytest.mark.parametrize(
    ("shared", "refused"),
    [
        (Shared(0, 0, 0, 0), False),
        (Shared(100, 10, 500, 250), False),
        (Shared(100, 11, 500, 0), True),
        (Shared(100, 0, 500, 251), True),
    ],
)
def test_what_is_refused(shared: Shared, refused: bool) -> None:
    assert shared.refused is refused
