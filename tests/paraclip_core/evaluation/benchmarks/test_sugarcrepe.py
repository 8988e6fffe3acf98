"""SugarCrepe: the real files and a small set with images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fake_encoder import WordEncoder

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.benchmarks import sugarcrepe


def test_real_files_without_images(data_root: Path) -> None:
    rows = sugarcrepe.read_rows(data_root / "sugarcrepe")
    assert (len(rows.captions), rows.duplicates, rows.pool) == (7511, 6, None)
    assert all(text == text.strip() for text in rows.captions)
    encoder = WordEncoder()
    measured = sugarcrepe.measure(rows, encoder)
    assert all(name.startswith("text_only_closeness") for name in measured.metrics)
    a, b = encoder.texts(rows.captions), encoder.texts(rows.negatives)
    cosines, kinds = (a * b).sum(1), np.array(rows.categories)
    means = {kind: cosines[kinds == kind].mean() for kind in set(rows.categories)}
    assert len(means) == 7
    assert measured.metrics["text_only_closeness@swap_att"] == pytest.approx(100 * means["swap_att"], rel=1e-5)
    assert measured.metrics["text_only_closeness"] == pytest.approx(100 * np.mean(list(means.values())), rel=1e-5)
    assert measured.notes["images_found"] == 0


def test_accuracy_with_images(tmp_path: Path) -> None:
    rows = [
        {"filename": "red_dog.jpg", "caption": " red dog ", "negative_caption": "blue dog"},
        {"filename": "old_cat.jpg", "caption": "new cat", "negative_caption": "old cat"},
        {"filename": "old_cat.jpg", "caption": "old cat", "negative_caption": "old cat"},
    ]
    (tmp_path / "swap_att.json").write_text(json.dumps({str(i): row for i, row in enumerate(rows)}))
    (tmp_path / "add_obj.json").write_text(json.dumps({"0": rows[0]}))
    images = tmp_path / "val2017"
    images.mkdir()
    (images / "red_dog.jpg").touch()
    assert sugarcrepe.read_rows(tmp_path).pool is None
    (images / "old_cat.jpg").touch()
    encoder = WordEncoder()
    measured = sugarcrepe.measure(sugarcrepe.read_rows(tmp_path), encoder)
    assert measured.metrics == pytest.approx(
        {"accuracy": 200 / 3, "accuracy@add_obj": 100.0, "accuracy@swap_att": 100 / 3}
    )
    assert encoder.encoded_images == 2
    assert set(name.partition("@")[0] for name in measured.metrics) <= {
        metric.name for metric in sugarcrepe.SUGARCREPE.metrics
    }


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="no SugarCrepe rows"):
        sugarcrepe.read_rows(tmp_path)
    (tmp_path / "add_att.json").write_text('{"0": {"filename": "x.jpg", "caption": "c"}}')
    with pytest.raises(BenchmarkError, match=r"add_att\.json, row 1: no field negative_caption"):
        sugarcrepe.read_rows(tmp_path)
