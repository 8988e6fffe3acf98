"""The DAG: which stages a run has, and that their fingerprints depend on what they should and on nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from paraclip_core.config import Settings
from paraclip_core.errors import InputError
from paraclip_core.settings import load_settings
from storage.artifacts import ArtifactStore
from tasks.dag import STAGES, resolve, stage_names

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
ORDER = ("scenes", "ingest", "paraphrase_1", "paraphrase_2", "features", "bootstrap", "finetune", "evaluate", "report")


def fingerprints(tmp_path: Path, *overrides: str) -> dict[str, str]:
    settings = load_settings(DEMO, [f"data.root={tmp_path}", *overrides])
    return {name: node.fingerprint for name, node in resolve(settings, ArtifactStore(tmp_path / "root")).items()}


def changed(tmp_path: Path, *overrides: str) -> set[str]:
    before, after = fingerprints(tmp_path), fingerprints(tmp_path, *overrides)
    return {name for name in before if before[name] != after[name]}


def test_every_stage_comes_after_its_inputs() -> None:
    assert tuple(STAGES) == ORDER
    settings = load_settings(DEMO)
    seen: set[str] = set()
    for name in stage_names(settings):
        assert set(STAGES[name].inputs(settings)) <= seen, name
        seen.add(name)


def test_stages_depend_on_the_settings() -> None:
    assert stage_names(load_settings(DEMO)) == ORDER
    assert "scenes" not in stage_names(Settings())
    assert "bootstrap" not in stage_names(load_settings(DEMO, ["model.base=ViT-B-32:laion2b_s34b_b79k"]))


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("data.scenes.seed=8", "scenes"),
        ("data.min_words=3", "ingest"),
        ("paraphrase.seed=1", "paraphrase_1"),
        ("bootstrap.epochs=1", "bootstrap"),
        ("finetune.epochs=1", "finetune"),
        ("evaluate.seed=1", "evaluate"),
        ("name=other", "report"),
    ],
)
def test_an_option_changes_its_stage_and_what_follows_from_it(tmp_path: Path, override: str, first: str) -> None:
    found = changed(tmp_path, override)
    assert first in found and "report" in found
    assert not found & set(ORDER[: ORDER.index(first)]), "nothing before it changes"


def test_fine_tuning_leaves_the_base_and_the_captions_alone(tmp_path: Path) -> None:
    assert changed(tmp_path, "finetune.learning_rate=1e-5") == {"finetune", "evaluate", "report"}
    assert "paraphrase_2" not in changed(tmp_path, "bootstrap.seed=3")


def test_operational_options_change_nothing(tmp_path: Path) -> None:
    overrides = ["run.threads=1", "run.device=cuda", "features.batch_size=3", "paraphrase.chunk=7"]
    assert changed(tmp_path, *overrides, "run.placement=deployments", "finetune.checkpoint_steps=5") == set()


def test_source_contents_count_and_places_do_not(tmp_path: Path) -> None:
    def ingest(folder: Path) -> str:
        settings = load_settings(None, [f"data.root={folder}", "data.sources.0.path=a.txt", "paraphrase.engine=file"])
        settings = settings.model_copy(update={"model": settings.model.model_copy(update={"base": "x:y"})})
        return resolve(settings, ArtifactStore(tmp_path / "root"), {"ingest": STAGES["ingest"]})["ingest"].fingerprint

    for name, text in (("here", "a red dog\n"), ("there", "a red dog\n"), ("other", "a blue dog\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(text)
    assert ingest(tmp_path / "here") == ingest(tmp_path / "there") != ingest(tmp_path / "other")
    with pytest.raises(InputError, match=r"a\.txt"):
        ingest(tmp_path / "nowhere")
