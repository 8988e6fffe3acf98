"""The fine-tuning stage on images that are vectors, after a real bootstrap."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.fingerprint import fingerprint
from paraclip.storage.object_store import open_remote
from paraclip.storage.roots import RemoteStore
from paraclip.tasks.models import base_reference, base_sources
from paraclip.tasks.run.dag import carry_out
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.training import BOOTSTRAP, CONTROL, FINETUNE
from paraclip.tasks.training import bodies
from paraclip.tasks.training.data import Images, hold_out
from paraclip_core import progress
from paraclip_core.captions.tokens import Tokenizer
from paraclip_core.config import LossWeights, RankOptions, Settings
from paraclip_core.errors import TrainingError
from paraclip_core.progress import Fact
from paraclip_core.training.alpha import choose_alpha

RunStage = Callable[..., Artifact]


def _finetune(draft: Draft, settings: Settings, store: ArtifactStore, inputs: dict[str, Artifact]) -> None:
    carry_out(FINETUNE, draft, Run(settings, store), inputs)


SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def inputs(run_stage: RunStage, sources: dict[str, Artifact]) -> dict[str, Artifact]:
    """All that fine-tuning reads."""
    return {**sources, "bootstrap": run_stage(BOOTSTRAP, sources)}


def files(made: Artifact) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in made.manifest.files.items()}


def test_it_writes_release_log_and_sweep(run_stage: RunStage, inputs: dict[str, Artifact], tower: str) -> None:
    made = run_stage(FINETUNE, inputs)
    sweep = json.loads((made.path / "alpha_sweep.json").read_text())
    assert [point["alpha"] for point in sweep["alphas"]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert {"ao@10", "js@10", "text_to_image_recall@10"} <= set(sweep["alphas"][0])
    assert all(0 <= value <= 100 for point in sweep["alphas"] for value in point.values())
    best = max(sweep["alphas"], key=lambda point: point["ao@10"])
    assert best["ao@10"] > sweep["alphas"][0]["ao@10"] and "ao@10" in sweep["rule"]
    metrics = made.manifest.metrics
    assert metrics["image_tower_hash_before"] == metrics["image_tower_hash_after"] == tower
    assert metrics["alpha"] == sweep["chosen"] and metrics["without_image"] == 1
    assert metrics["rows"] + metrics["held_out"] + metrics["without_image"] == metrics["read"] == 145
    assert f"bootstrap/{inputs['bootstrap'].fingerprint}" in (made.path / "release/README.md").read_text()


def test_the_fingerprint_does_not_follow_a_moved_base(settings: Settings) -> None:
    def options(base: str) -> Mapping[str, object]:
        model = settings.model.model_copy(update={"base": base})
        return FINETUNE.options(Run(settings.model_copy(update={"model": model})))

    assert options("local-dir:/a") == options("/b") != options("embedded") != options("ViT-B-32:openai")
    assert options("embedded")["base"] == "embedded"


def weights(made: Artifact) -> dict[str, Tensor]:
    return load_file(made.path / "release/open_clip_model.safetensors")


def test_the_release_is_what_was_chosen_of_what_was_trained(
    run_stage: RunStage, inputs: dict[str, Artifact], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(chosen: float, **changed: object) -> tuple[set[str], dict]:
        """Names of the weights that are not the base's, and the log's first line."""
        monkeypatch.setattr(bodies, "choose_alpha", lambda *given: {**choose_alpha(*given), "chosen": chosen})
        options = settings.model_copy(update={"finetune": settings.finetune.model_copy(update=changed)})
        made = run_stage(FINETUNE, inputs, fingerprint("finetune", len(changed), {}, {}), options)
        tuned, log = weights(made), (made.path / "training_log.jsonl").read_text().splitlines()
        return {name for name in tuned if not torch.equal(tuned[name], base[name])}, json.loads(log[0])

    base = weights(inputs["bootstrap"])
    assert trained(0.0)[0] == set()
    changed, line = trained(1.0, weights=LossWeights(image_caption=1), distil=0.01)
    assert {"text_projection", "logit_scale"} < changed and not any(name.startswith("visual.") for name in changed)
    assert {"image~caption", "image~paraphrase_2", "distil"} <= set(line["losses"])


def test_killed_and_gone_on_with_it_gives_the_same_files(
    run_stage: RunStage, store: ArtifactStore, inputs: dict[str, Artifact], settings: Settings
) -> None:
    often = settings.model_copy(update={"finetune": settings.finetune.model_copy(update={"checkpoint_steps": 2})})
    whole = files(run_stage(FINETUNE, inputs))
    work = store.work_path(FINETUNE.name, "e" * 32)
    draft = Draft(FINETUNE.name, "e" * 32, FINETUNE.version, {}, {})
    for lines in (1, 7):
        child = SPAWN.Process(target=_finetune, args=(draft, often, store, inputs))
        child.start()
        _wait_for_lines(work / "out/training_log.jsonl", lines, child)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    assert list((work / "scratch/checkpoints").glob("step-*"))
    assert files(run_stage(FINETUNE, inputs, "e" * 32, often)) == whole


def test_another_machine_goes_on_from_the_checkpoint_of_a_lost_one(
    run_stage: RunStage,
    inputs: dict[str, Artifact],
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(progress, "REPORT_SECONDS", 0.0)
    often = settings.model_copy(update={"finetune": settings.finetune.model_copy(update={"checkpoint_steps": 2})})
    draft = Draft(FINETUNE.name, "e" * 32, FINETUNE.version, {}, {})
    one, two = (RemoteStore(tmp_path / name, open_remote(f"memory://{tmp_path.name}")) for name in ("one", "two"))

    def stop(done: int, total: int | None, **facts: Fact) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(FINETUNE, draft, Run(often, one), inputs, stop)
    shutil.rmtree(one.root)
    with caplog.at_level("INFO"):
        assert files(carry_out(FINETUNE, draft, Run(often, two), inputs)) == files(run_stage(FINETUNE, inputs))
    assert "going on after step 4" in caplog.text


def _wait_for_lines(path: Path, lines: int, child: BaseProcess) -> None:
    until = time.monotonic() + 300
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert child.is_alive(), "ended before it was killed"
        assert time.monotonic() < until, "no step was taken"
        time.sleep(0.005)


def test_the_control_trains_on_captions_alone(
    run_stage: RunStage, inputs: dict[str, Artifact], settings: Settings
) -> None:
    control = settings.model_copy(update={"finetune": settings.finetune.model_copy(update={"texts": "captions"})})
    paraphrased, captions = run_stage(FINETUNE, inputs), run_stage(FINETUNE, inputs, "c" * 32, control)
    assert captions.manifest.metrics["steps"] == paraphrased.manifest.metrics["steps"]
    assert files(captions)["training_log.jsonl"] != files(paraphrased)["training_log.jsonl"]
    told, plain = ((made.path / "release/README.md").read_text() for made in (paraphrased, captions))
    assert "captions and their paraphrases" in told
    assert "captions alone, as a control" in plain and "repaired" not in plain
    # The stage of the run's own control does the same, from the run's settings.
    stage = run_stage(CONTROL, inputs, "f" * 32)
    assert stage.path.parent.name == "control" and files(stage) == files(captions)


def test_rankings_are_trained(run_stage: RunStage, inputs: dict[str, Artifact], settings: Settings) -> None:
    ranks = RankOptions(weight=1.0)
    changed = settings.model_copy(update={"finetune": settings.finetune.model_copy(update={"ranks": ranks})})
    made = run_stage(FINETUNE, inputs, "e" * 32, changed)
    log = [json.loads(line) for line in (made.path / "training_log.jsonl").read_text().splitlines()]
    divergences = [line["losses"]["ranks"] for line in log]
    assert len(divergences) == made.manifest.metrics["steps"] and min(divergences) > 0
    assert '{"weight": 1.0}' in (made.path / "release/README.md").read_text()


def with_rewrites(path: Path, count: int, text: str | None = None) -> None:
    """Give each row of a file of paraphrases `count` rows, all but the first with `text` as their second paraphrase."""
    table, others = pq.read_table(path), {}
    if text is not None:
        others = {"paraphrase_2": text, "paraphrase_2_tokens": Tokenizer().encode_batch([text]).to_pylist()[0]}
    rows = [{**row, **(others if number else {})} for row in table.to_pylist() for number in range(count)]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def test_equal_rewrites_train_as_one_does_and_others_otherwise(
    run_stage: RunStage, inputs: dict[str, Artifact]
) -> None:
    path = inputs["paraphrase_2"].path / "paraphrases/part-00000.parquet"
    one = run_stage(FINETUNE, inputs)
    with_rewrites(path, 3)
    equal = run_stage(FINETUNE, inputs, "a" * 32)
    assert files(equal) == files(one)
    few, many = one.manifest.metrics, equal.manifest.metrics
    assert many["rewrites"] == 3 * many["rows"] == 3 * few["rows"] and "rewrites" not in few
    assert many["rewrites"] + many["held_out"] + many["without_image"] == many["read"] == 3 * few["read"]
    assert many["validation_pairs"] == few["validation_pairs"] > 0
    with_rewrites(path, 2, "something else")
    other = run_stage(FINETUNE, inputs, "b" * 32)
    assert other.manifest.metrics["rewrites"] == 6 * few["rows"] and other.manifest.metrics["steps"] == few["steps"]
    assert files(other)["training_log.jsonl"] != files(one)["training_log.jsonl"]
    # The base is measured on the first rewrite of each caption.
    bases = [json.loads((made.path / "alpha_sweep.json").read_text())["alphas"][0] for made in (one, other)]
    assert bases[0] == bases[1]


def test_too_few_rows_say_why(run_stage: RunStage, inputs: dict[str, Artifact]) -> None:
    path = inputs["paraphrase_2"].path / "paraphrases/part-00000.parquet"
    pq.write_table(pq.read_table(path).filter(pc.field("image_id") == "nowhere"), path)
    with pytest.raises(TrainingError, match="0 rows of paraphrase_2 can be trained on"):
        run_stage(FINETUNE, inputs)


def trained_rows(inputs: dict[str, Artifact], settings: Settings) -> tuple[Path, pa.Table]:
    """The file of paraphrases, and those of its rows whose images are there and not held out."""
    images = Images(inputs["features"].path)
    held_out = hold_out(inputs["ingest"].path / "captions", images, settings.finetune.validation)
    path = inputs["paraphrase_2"].path / "paraphrases/part-00000.parquet"
    table = pq.read_table(path)
    rows = images.find(table["image_id"].combine_chunks())
    return path, table.filter(pa.array((rows >= 0) & ~held_out.all[rows]))


def test_rows_of_one_image_have_nothing_to_be_told_from(
    run_stage: RunStage, inputs: dict[str, Artifact], settings: Settings
) -> None:
    path, trained = trained_rows(inputs, settings)
    rows = [{**trained.slice(0, 1).to_pylist()[0], "caption_id": bytes([number]) * 16} for number in range(3)]
    pq.write_table(pa.Table.from_pylist(rows, schema=trained.schema), path)
    with pytest.raises(TrainingError, match=r"all 3 rows of paraphrase_2 .* are of one image"):
        run_stage(FINETUNE, inputs)


def test_without_held_out_pairs_it_says_so(
    run_stage: RunStage, inputs: dict[str, Artifact], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    path, trained = trained_rows(inputs, settings)
    pq.write_table(trained, path)
    made = run_stage(FINETUNE, inputs)
    sweep = json.loads((made.path / "alpha_sweep.json").read_text())
    assert made.manifest.metrics["validation_pairs"] == 0 and set(sweep["alphas"][0]) == {
        "alpha",
        "text_to_image_recall@10",
    }
    allowed = sweep["alphas"][0]["text_to_image_recall@10"] - settings.finetune.alpha.max_recall_drop
    assert sweep["chosen"] == max(p["alpha"] for p in sweep["alphas"] if p["text_to_image_recall@10"] >= allowed)
    assert "chosen without paraphrases" in caplog.text
    card = (made.path / "release/README.md").read_text()
    for told in (sweep["rule"], card, caplog.text):
        assert "ao@10 could not be looked at" in told and "finetune.validation" in told


def test_which_base(run_stage: RunStage, settings: Settings, inputs: dict[str, Artifact], tmp_path: Path) -> None:
    assert base_reference(settings, inputs) == str(inputs["bootstrap"].path / "release")
    store = ArtifactStore(tmp_path / "root")
    assert base_sources(Run(settings, store)) == {}
    folder = inputs["bootstrap"].path / "release"
    local = settings.model_copy(update={"model": settings.model.model_copy(update={"base": f"local-dir:{folder}"})})
    assert base_reference(local, {}) == f"local-dir:{folder}"
    assert FINETUNE.inputs(local) == ("ingest", "paraphrase_2", "features")
    sources = {name: made for name, made in inputs.items() if name != "bootstrap"}
    assert run_stage(FINETUNE, sources, changed=local).manifest.metrics["base"] == f"local-dir:{folder}"
    assert set(base_sources(Run(local, store))) == {
        "base/open_clip_config.json",
        "base/open_clip_model.safetensors",
    }
