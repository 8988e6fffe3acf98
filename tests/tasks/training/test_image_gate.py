"""The image gate of fine-tuning, after a real bootstrap on images that are vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from paraclip_core import tables
from paraclip_core.captions.tokens import Tokenizer
from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.load import load_clip
from paraclip_core.config import FinetuneOptions, Settings, meaning
from paraclip_core.errors import TrainingError
from storage.artifacts import Artifact
from storage.parquet import read_table, write_table
from tasks.context import Run
from tasks.models import base_reference
from tasks.stages.training import BOOTSTRAP, FINETUNE
from tasks.training import image_gate
from tasks.training.data import STORED, Images, TextTokens, paraphrase_rows
from tasks.training.image_gate import REASON, ImageGate

RunStage = Callable[..., Artifact]
MARGIN = 0.05


@pytest.fixture
def inputs(run_stage: RunStage, sources: dict[str, Artifact]) -> dict[str, Artifact]:
    """All that fine-tuning reads."""
    return {**sources, "bootstrap": run_stage(BOOTSTRAP, sources)}


def gated(settings: Settings, margin: float | None) -> Settings:
    return settings.model_copy(update={"finetune": settings.finetune.model_copy(update={"image_gate": margin})})


def files(made: Artifact) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in made.manifest.files.items()}


def expected(settings: Settings, inputs: dict[str, Artifact]) -> dict[bytes, tuple[float, float, float]]:
    """Caption id → cosines of caption and paraphrases with the image, computed from the texts, one way only."""
    clip = load_clip(base_reference(settings, inputs))
    images = Images(inputs["features"].path)
    rows = [row for row in read_table(inputs["paraphrase_2"].path / "paraphrases").to_pylist() if row["image_id"]]
    found = np.asarray(images.matrix[images.find(pa.array([row["image_id"] for row in rows]))], np.float64)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    texts = [encode_texts(clip, [row[k] for row in rows]) for k in ("caption", "paraphrase_1", "paraphrase_2")]
    cosines = np.stack([(vectors * found).sum(axis=1) for vectors in texts], axis=1)
    return {row["caption_id"]: tuple(values) for row, values in zip(rows, cosines.tolist(), strict=True)}


def test_a_gate_that_leaves_too_few_rows_is_named(
    run_stage: RunStage, inputs: dict[str, Artifact], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_gate, "SLACK", -9)
    with pytest.raises(TrainingError, match=r"rejected \d+\), at least 2 .* \(finetune\.image_gate\)"):
        run_stage(FINETUNE, inputs, "f" * 32, gated(settings, 0.0))


def test_what_is_further_from_its_image_is_left_out_and_told(
    run_stage: RunStage, inputs: dict[str, Artifact], settings: Settings
) -> None:
    plain, made = run_stage(FINETUNE, inputs), run_stage(FINETUNE, inputs, "a" * 32, gated(settings, MARGIN))
    table = read_table(made.path / "rejects")
    assert table.schema.equals(tables.PARAPHRASE_REJECTS)
    rejects = {row["caption_id"]: row for row in table.to_pylist()}
    before, after = plain.manifest.metrics, made.manifest.metrics
    assert 0 < len(rejects) == after["rejected"] == before["rows"] - after["rows"] < before["rows"]
    assert after["rows"] + after["rejected"] + after["held_out"] + after["without_image"] == after["read"]
    cosines = expected(settings, inputs)
    for name, row in rejects.items():
        caption, *both = cosines[name]
        assert caption - min(both) > MARGIN - 2e-4 and row["reason"] == REASON
        assert row["step"] == 1 + int(np.argmin(both)) and row["answer"]
        told = float(row["detail"].split()[1])
        assert abs(told - min(both)) < 1e-3
    # Rows of held-out images are not judged, all others that stayed are near enough.
    far = {name for name, (caption, *both) in cosines.items() if caption - min(both) > MARGIN + 2e-4}
    assert 0 < len(far - set(rejects)) <= after["held_out"]
    assert "rejected" not in before and not (plain.path / "rejects").exists()


def test_a_gate_that_stops_nothing_changes_no_weight(
    run_stage: RunStage, inputs: dict[str, Artifact], settings: Settings
) -> None:
    plain, made = files(run_stage(FINETUNE, inputs)), files(run_stage(FINETUNE, inputs, "b" * 32, gated(settings, 2.0)))
    same = {"release/open_clip_model.safetensors", "training_log.jsonl", "alpha_sweep.json"}
    assert {name: made[name] for name in same} == {name: plain[name] for name in same}
    assert set(made) - set(plain) == {"rejects/part-00000.parquet"}


def test_a_try_that_ended_after_its_rows_were_collected_keeps_the_rejects(
    run_stage: RunStage, inputs: dict[str, Artifact], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = gated(settings, MARGIN)
    whole = files(run_stage(FINETUNE, inputs, "c" * 32, chosen))

    def fails(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tasks.training.finetune.train_together", fails)
        with pytest.raises(KeyboardInterrupt):
            run_stage(FINETUNE, inputs, "d" * 32, chosen)
    assert files(run_stage(FINETUNE, inputs, "d" * 32, chosen)) == whole


def test_rows_are_judged_alike_in_any_blocks(
    inputs: dict[str, Artifact], settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, rows = Images(inputs["features"].path), inputs["paraphrase_2"].path / "paraphrases"
    clip = load_clip(base_reference(settings, inputs))
    found = []
    for block in (7, 2048):
        monkeypatch.setattr(image_gate, "BLOCK", block)
        gate = ImageGate(clip, images, MARGIN, tmp_path / str(block))
        kept = np.concatenate([part for _, part in paraphrase_rows(rows, images, gate=gate)])
        gate.close()
        assert len(kept) + gate.rejected == 144
        found.append((kept.tolist(), (tmp_path / str(block) / "part-00000.parquet").read_bytes()))
    assert found[0] == found[1]


def test_a_caption_keeps_the_rewrites_that_pass(
    run_stage: RunStage, inputs: dict[str, Artifact], settings: Settings
) -> None:
    """And it is trained on as long as there is one of them."""
    path = inputs["paraphrase_2"].path / "paraphrases/part-00000.parquet"
    table = read_table(path)
    plain = run_stage(FINETUNE, inputs, "e" * 32, gated(settings, MARGIN))
    far = {row["caption_id"] for row in read_table(plain.path / "rejects").to_pylist()}
    # Each caption's own text is its best rewrite, which no gate stops.
    same = {f"paraphrase_{step}{end}": f"caption{end}" for step in (1, 2) for end in ("", "_tokens")}
    rows = [
        {**row, **{name: row[own] for name, own in same.items()}} if number == 0 else row
        for row in table.to_pylist()
        for number in range(2)
    ]
    path.unlink()
    write_table(path, pa.Table.from_pylist(rows, schema=tables.PARAPHRASES))
    made = run_stage(FINETUNE, inputs, "f" * 32, gated(settings, MARGIN))
    metrics, before = made.manifest.metrics, plain.manifest.metrics
    assert {row["caption_id"] for row in read_table(made.path / "rejects").to_pylist()} == far
    assert metrics["rejected"] == len(far) > 0
    assert metrics["rows"] == before["rows"] + len(far) and metrics["rewrites"] == 2 * metrics["rows"] - len(far)


def test_a_model_with_a_tokenizer_of_its_own_is_asked_alike(
    inputs: dict[str, Artifact], settings: Settings, tmp_path: Path
) -> None:
    """Its tokens are made from the texts, whose columns the rejects need, too."""
    images, rows = Images(inputs["features"].path), inputs["paraphrase_2"].path / "paraphrases"
    clip = load_clip(base_reference(settings, inputs))
    found = []
    for name, tokens in (
        ("stored", STORED),
        ("own", TextTokens(True, lambda texts: Tokenizer().encode_batch(texts.to_pylist()))),
    ):
        gate = ImageGate(clip, images, MARGIN, tmp_path / name)
        kept = [part for _, part in paraphrase_rows(rows, images, tokens=tokens, gate=gate)]
        gate.close()
        found.append((np.concatenate(kept).tolist(), (tmp_path / name / "part-00000.parquet").read_bytes()))
    assert found[0] == found[1]


def test_all_rows_far_away_leave_an_empty_stream(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    class Nothing:
        columns = ("caption_id",)

        def __call__(self, rows: pa.RecordBatch, *_: Any) -> np.ndarray:
            assert rows.num_rows == len(rows.column("caption_id")) > 0
            return np.zeros(rows.num_rows, bool)

    images = Images(inputs["features"].path)
    assert not list(paraphrase_rows(inputs["paraphrase_2"].path / "paraphrases", images, gate=Nothing()))


def test_without_a_gate_fingerprint_and_card_say_nothing_of_it(settings: Settings) -> None:
    assert "image_gate" not in meaning(FinetuneOptions())
    assert meaning(FinetuneOptions(image_gate=0.0))["image_gate"] == 0.0
    assert FINETUNE.options(Run(gated(settings, 0.1))) != FINETUNE.options(Run(settings))
