"""The fine-tuning stage on images that are vectors, after a real training of the built-in base; what the cards tell of
its rows."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.tasks.models import base_held_out, base_reference, base_sources
from paraclip.tasks.run.execute import execute
from paraclip.tasks.run.run import Run, Stage
from paraclip.tasks.stages.training import BUILT_IN_BASE, CONTROL, FINETUNE
from paraclip.tasks.training import bodies, candidates
from paraclip.tasks.training.bodies import paraphraser_of, provenance
from paraclip.tasks.training.data import Images, hold_out
from paraclip_core import progress
from paraclip_core.clip.model import ClipModel
from paraclip_core.config import Settings
from paraclip_core.errors import TrainingError
from paraclip_core.progress import Fact, Progress
from paraclip_core.training.choice import choose
from paraclip_core.training.data import TrainingRows
from paraclip_core.training.options import LossWeights, RankingDistillation
from paraclip_core.training.trainer import TrainingJob, TrainingResult, train
from paraclip_core.training.validation import Validation, ValidationSet

RunStage = Callable[..., Artifact]
Edited = Callable[..., dict[str, Artifact]]
Change = Callable[[pa.Table], pa.Table]


def files(artifact: Artifact) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in artifact.manifest.files.items()}


def weights(artifact: Artifact) -> dict[str, Tensor]:
    return load_file(artifact.path / "release/open_clip_model.safetensors")


def card_of(artifact: Artifact) -> str:
    return (artifact.path / "release/README.md").read_text()


def candidates_of(artifact: Artifact) -> dict[str, Any]:
    return json.loads((artifact.path / "candidates.json").read_text())


def alphas_of(artifact: Artifact) -> list[dict[str, float]]:
    """What the only candidate finds at each α."""
    (candidate,) = candidates_of(artifact)["candidates"]
    return candidate["alphas"]


def test_it_writes_release_log_and_candidates(tuned: Artifact, inputs: dict[str, Artifact], encoder: str) -> None:
    points = alphas_of(tuned)
    assert [point["alpha"] for point in points] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert {"ao@10", "js@10", "text_to_image_recall@10", "overlap@10"} <= set(points[0])
    assert all(0 <= value <= 100 for point in points for value in point.values())
    best = max(points, key=lambda point: point["ao@10"])
    assert best["ao@10"] > points[0]["ao@10"] and points[0]["overlap@10"] == 100 > points[-1]["overlap@10"]
    metrics = tuned.manifest.metrics
    assert metrics["image_encoder_hash_before"] == metrics["image_encoder_hash_after"] == encoder
    chosen = candidates_of(tuned)["chosen"]
    assert {name: metrics[name] for name in chosen} == chosen and metrics["without_image"] == 1
    assert metrics["rows"] + metrics["held_out"] + metrics["without_image"] == metrics["read"] == 145
    assert f"built_in_base/{inputs['built_in_base'].fingerprint}" in card_of(tuned)


def test_the_release_is_what_was_chosen_of_what_was_trained_from_a_base_in_a_folder(
    run_stage: RunStage, inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = inputs["built_in_base"].path / "release"
    base, place = weights(inputs["built_in_base"]), f"local-dir:{folder}"
    sources = {name: artifact for name, artifact in inputs.items() if name != "built_in_base"}

    def trained(chosen: float, **changed: object) -> tuple[Artifact, set[str]]:
        """And names of the weights that are not the base's."""

        def only(*given: Any) -> Any:
            choice = choose(*given)
            return replace(choice, chosen=replace(choice.chosen, alpha=chosen))

        monkeypatch.setattr(bodies, "choose", only)
        artifact = run_stage(FINETUNE, sources, model={"base": place}, finetune=changed)
        return artifact, {name for name, weight in weights(artifact).items() if not torch.equal(weight, base[name])}

    unchanged, changed = trained(0.0)
    assert changed == set() and unchanged.manifest.metrics["base"] == place
    ranks = RankingDistillation(weight=1.0)
    own = {"weights": LossWeights(image_caption=1), "feature_distillation": 0.01, "ranking_distillation": ranks}
    artifact, changed = trained(1.0, recipe=("own",), **own)
    assert {"text_projection", "logit_scale"} < changed and not any(name.startswith("visual.") for name in changed)
    log = [json.loads(line) for line in (artifact.path / "training_log.jsonl").read_text().splitlines()]
    assert {"image~caption", "image~paraphrase_2", "feature_distillation"} <= set(log[0]["losses"])
    divergences = [line["losses"]["ranking_distillation"] for line in log]
    assert len(divergences) == artifact.manifest.metrics["steps"] and min(divergences) > 0
    assert '{"teacher": "caption", "weight": 1.0}' in card_of(artifact)


def test_which_base(settings: Settings, inputs: dict[str, Artifact], tmp_path: Path) -> None:
    folder, store = inputs["built_in_base"].path / "release", ArtifactStore(tmp_path / "root")

    def of(base: str) -> Settings:
        return settings.model_copy(update={"model": settings.model.model_copy(update={"base": base})})

    def options(base: str) -> Mapping[str, object]:
        return FINETUNE.options(Run(of(base)))

    assert base_reference(settings, inputs) == str(folder) and base_sources(Run(settings, store)) == {}
    local = of(f"local-dir:{folder}")
    assert base_reference(local, {}) == f"local-dir:{folder}"
    assert FINETUNE.inputs(local) == ("ingest", "paraphrase_2", "features")
    assert set(base_sources(Run(local, store))) == {"base/open_clip_config.json", "base/open_clip_model.safetensors"}
    # The fingerprint does not follow a base that is moved.
    assert options("local-dir:/a") == options("/b") != options("built-in") != options("ViT-B-32:openai")
    assert options("built-in")["base"] == "built-in"


def test_interrupted_and_gone_on_with_it_gives_the_same_files(
    store: ArtifactStore,
    inputs: dict[str, Artifact],
    tuned: Artifact,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(progress, "REPORT_SECONDS", 0.0)
    for candidate in store.list("candidate"):
        shutil.rmtree(candidate.path)

    def stop(done: int, total: int | None, **facts: Fact) -> None:
        if done == 5:
            raise KeyboardInterrupt

    often = settings.model_copy(update={"finetune": settings.finetune.model_copy(update={"checkpoint_steps": 2})})
    draft, run = Draft(FINETUNE.name, "e" * 32, FINETUNE.version, {}, {}), Run(often, store)
    with pytest.raises(KeyboardInterrupt):
        execute(FINETUNE, draft, run, inputs, stop)
    with caplog.at_level("INFO"):
        assert files(execute(FINETUNE, draft, run, inputs)) == files(tuned)
    assert "resuming after step 4" in caplog.text


def test_stopped_while_it_measures_it_measures_the_rest(
    store: ArtifactStore,
    inputs: dict[str, Artifact],
    tuned: Artifact,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draft, run = Draft(FINETUNE.name, "d" * 32, FINETUNE.version, {}, {}), Run(settings, store)
    numbers, measure = [], bodies.measure

    def counted(clip: ClipModel, held_out: ValidationSet) -> Validation:
        numbers.append(len(numbers))
        return measure(clip, held_out)

    monkeypatch.setattr(bodies, "measure", counted)

    def stop(done: int, total: int | None, **facts: Fact) -> None:
        if "measuring" in facts and len(numbers) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(FINETUNE, draft, run, inputs, stop)
    assert files(execute(FINETUNE, draft, run, inputs)) == files(tuned)
    assert len(numbers) == len({0.0, *settings.finetune.alpha.grid})


def test_several_candidates_are_trained_once_each_and_one_is_chosen(
    run_stage: RunStage,
    store: ArtifactStore,
    inputs: dict[str, Artifact],
    tuned: Artifact,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kill in the second candidate leaves the first one finished, and one more rate trains one more candidate."""
    monkeypatch.setattr(progress, "REPORT_SECONDS", 0.0)
    several = {"recipe": ("published", "ranking"), "learning_rate": (1e-3, 3e-3)}
    changed = settings.finetune.model_copy(update=several)
    run = Run(settings.model_copy(update={"finetune": changed}), store)
    draft = Draft(FINETUNE.name, "f" * 32, FINETUNE.version, {}, {})
    seen: dict[str, int] = {}

    def stop(done: int, total: int | None, **facts: Fact) -> None:
        if "measuring" in facts:
            return
        name = str(facts.get("candidate", ""))
        seen[name] = max(seen.get(name, 0), done)
        if name.startswith("2 of 4") and done == 5:
            raise KeyboardInterrupt

    assert tuned.manifest.metrics["learning_rate"] == 1e-3
    before = {one.fingerprint for one in store.list("candidate")}
    with pytest.raises(KeyboardInterrupt):
        execute(FINETUNE, draft, run, inputs, stop)
    assert list(seen) == ["2 of 4, published at 0.003"]  # the first one is that of `tuned`
    whole = execute(FINETUNE, draft, run, inputs)
    made = {one.fingerprint for one in store.list("candidate")} - before
    assert len(made) == 3
    metrics, tried = whole.manifest.metrics, candidates_of(whole)
    assert metrics["candidates"] == len(tried["candidates"]) == 4
    assert metrics["samples"] == 4 * metrics["steps"] * metrics["batch_size"]
    assert sum(one["stopped"] is None for one in tried["candidates"]) == (metrics["alpha"] > 0)
    again = run_stage(FINETUNE, inputs, finetune={**several, "learning_rate": (1e-3, 2e-3, 3e-3)})
    assert len({one.fingerprint for one in store.list("candidate")} - before - made) == 2
    assert again.manifest.metrics["candidates"] == 6


def test_the_control_trains_on_captions_alone_and_on_their_hard_negatives(
    run_stage: RunStage, inputs: dict[str, Artifact]
) -> None:
    changed = {"recipe": ("contrast",), "epochs": 1.0}
    artifacts = [run_stage(stage, inputs, finetune=changed) for stage in (FINETUNE, CONTROL)]
    assert [artifact.path.parent.name for artifact in artifacts] == ["finetune", "control"]
    steps, other_steps = (artifact.manifest.metrics["steps"] for artifact in artifacts)
    assert steps == other_steps
    card, control_card = map(card_of, artifacts)
    assert "captions and their paraphrases" in card
    assert "captions only, as a control" in control_card and "repaired" not in control_card
    logs = [
        [json.loads(line) for line in (artifact.path / "training_log.jsonl").read_text().splitlines()]
        for artifact in artifacts
    ]
    for artifact, log in zip(artifacts, logs, strict=True):
        assert artifact.manifest.metrics["recipe"] == "contrast"
        assert set(log[0]["losses"]) == {
            "caption~paraphrase_1", "paraphrase_1~paraphrase_2", "feature_distillation", "ranking_distillation",
            "hard_negative_ranking",
        }  # fmt: skip
        assert log[-1]["losses"]["hard_negative_ranking"] > 0
    # The caption is its own paraphrase there, and its hard negative is the hardest of its negatives.
    tuned, control = (log[0]["losses"]["caption~paraphrase_1"] for log in logs)
    assert tuned > control > 0


def test_the_default_recipes_train_on_rewordings_by_rule(
    run_stage: RunStage, inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: dict[str, TrainingJob] = {}

    def seen(job: TrainingJob, progress: Progress) -> TrainingResult:
        jobs["contrast" if job.pairs[0].hard_negatives else "other"] = job
        return train(job, progress)

    monkeypatch.setattr(candidates, "train", seen)
    run_stage(FINETUNE, inputs, finetune={"epochs": 0.1, "learning_rate": (1e-3,), "recipe": None})
    reworded = {name: job.vocabulary is not None and len(job.vocabulary.left_out[1]) > 30 for name, job in jobs.items()}
    assert reworded == {"contrast": True, "other": False}


def with_paraphrases(count: int, text: str | None, table: pa.Table) -> pa.Table:
    """Gives each row of the paraphrases `count` rows, all but the first with `text` as their second paraphrase."""
    others = {}
    if text is not None:
        others = {"paraphrase_2": text}
    rows = [{**row, **(others if number else {})} for row in table.to_pylist() for number in range(count)]
    return pa.Table.from_pylist(rows, schema=table.schema)


def test_equal_rewrites_train_as_one_does(run_stage: RunStage, edited: Edited, tuned: Artifact) -> None:
    equal = run_stage(FINETUNE, edited("paraphrase_2", partial(with_paraphrases, 3, None)))
    assert files(equal) == files(tuned)
    few, many = tuned.manifest.metrics, equal.manifest.metrics
    assert many["paraphrases"] == 3 * many["rows"] == 3 * few["rows"] and "paraphrases" not in few
    assert many["paraphrases"] + many["held_out"] + many["without_image"] == many["read"] == 3 * few["read"]
    assert many["validation_pairs"] == few["validation_pairs"] > 0


def test_other_rewrites_train_otherwise(run_stage: RunStage, edited: Edited, tuned: Artifact) -> None:
    other = run_stage(FINETUNE, edited("paraphrase_2", partial(with_paraphrases, 2, "something else")))
    few, many = tuned.manifest.metrics, other.manifest.metrics
    assert many["paraphrases"] == 2 * few["rows"] and many["steps"] == few["steps"]
    assert files(other)["training_log.jsonl"] != files(tuned)["training_log.jsonl"]
    # The base is measured on the first paraphrase of each caption.
    assert alphas_of(other)[0] == alphas_of(tuned)[0]


@pytest.fixture
def trained_rows(inputs: dict[str, Artifact], settings: Settings) -> Change:
    """Those rows whose images are there and not held out."""
    images = Images(inputs["features"].path)
    held_out = hold_out(inputs["ingest"].path / "captions", images, settings.finetune.validation)

    def trained(table: pa.Table) -> pa.Table:
        rows = images.find(table["image_id"].combine_chunks())
        return table.filter(pa.array((rows >= 0) & ~held_out.all[rows]))

    return trained


def of_one_image(table: pa.Table) -> pa.Table:
    rows = [{**table.to_pylist()[0], "caption_id": bytes([number]) * 16} for number in range(3)]
    return pa.Table.from_pylist(rows, schema=table.schema)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda trained: trained.slice(0, 0), "0 rows of paraphrase_2 can be trained on"),
        (of_one_image, "all 3 rows of paraphrase_2 .* are of one image"),
    ],
)
def test_rows_that_nothing_can_be_learned_from(
    change: Change, message: str, run_stage: RunStage, edited: Edited, trained_rows: Change
) -> None:
    with pytest.raises(TrainingError, match=message):
        run_stage(FINETUNE, edited("paraphrase_2", lambda table: change(trained_rows(table))))


def test_without_held_out_pairs_it_says_so(
    run_stage: RunStage, edited: Edited, trained_rows: Change, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    artifact = run_stage(FINETUNE, edited("paraphrase_2", trained_rows))
    assert artifact.manifest.metrics["validation_pairs"] == 0
    assert set(alphas_of(artifact)[0]) == {"alpha", "text_to_image_recall@10", "overlap@10"}
    for text in (candidates_of(artifact)["rule"], card_of(artifact), caplog.text):
        assert "agreement could not be looked at" in text and "finetune.validation" in text


# What the card tells of the rows that were trained on


def table_of(card: str, head: str) -> dict[str, int]:
    """The rows of a card's table by their first column."""
    table = card.partition(f"| {head} | rows |\n|---|---|\n")[2].partition("\n\n")[0]
    return {name: int(rows) for name, rows in re.findall(r"^\| (.*) \| (\d+) \|$", table, re.M)}


@pytest.mark.parametrize("stage", [BUILT_IN_BASE, FINETUNE])
def test_the_card_counts_the_rows_that_were_trained_on(
    stage: Stage, run_stage: RunStage, edited: Edited, settings: Settings, inputs: dict[str, Artifact]
) -> None:
    images = Images(inputs["features"].path)
    share = base_held_out(settings) if stage is BUILT_IN_BASE else settings.finetune.validation
    held_out = hold_out(inputs["ingest"].path / "captions", images, share)

    def restated(table: pa.Table) -> pa.Table:
        """Every third caption has another license; those that are not trained on have one of their own."""
        places = images.find(table["image_id"].combine_chunks())
        trained = (table["split"].to_numpy() == "train") & (places >= 0) & ~held_out.all[places]
        values = {
            "license": [("CC0-1.0", "CC0-1.0", "MIT")[n % 3] if t else "secret" for n, t in enumerate(trained)],
            "source": [f"{'b' if n > 40 else 'a'}.parquet" if t else "unused" for n, t in enumerate(trained)],
        }
        for name, column in values.items():
            table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), [column])
        return table

    artifact = run_stage(stage, edited("ingest", restated))
    card, rows = card_of(artifact), artifact.manifest.metrics["rows"]
    licenses, sources = table_of(card, "license as stated"), table_of(card, "source")
    assert set(licenses) == {"CC0-1.0", "MIT"} and set(sources) == {"a.parquet", "b.parquet"}
    assert sum(licenses.values()) == sum(sources.values()) == rows < 162
    assert "secret" not in card and "license_name: CC0-1.0, MIT\n" in card


def test_who_paraphrased(sources: dict[str, Artifact]) -> None:
    artifact = sources["paraphrase_2"]
    assert paraphraser_of(artifact) is None
    manifest_of_model = replace(artifact.manifest, metrics={"engine": "openvino", "model": "x.gguf@fp32"})
    assert paraphraser_of(replace(artifact, manifest=manifest_of_model)) == "engine `openvino`, model `x.gguf@fp32`"


def test_leftovers_of_an_earlier_try_are_not_counted(sources: dict[str, Artifact], tmp_path: Path) -> None:
    captions = sources["ingest"].path / "captions"
    ids = pq.read_table(captions, columns=["caption_id"])["caption_id"].combine_chunks()
    whole = np.array([list(value) for value in ids.to_pylist()], np.uint8)
    for count in (50, 7):
        rows = TrainingRows({}, ids=whole[5 : 5 + count])
        licenses, files = provenance(rows, captions, tmp_path / "s")
        assert sum(licenses.values()) == sum(files.values()) == count
