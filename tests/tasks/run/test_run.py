"""The DAG: which stages a run has, and that their fingerprints depend on what they should and on nothing else."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from paraclip.storage import files
from paraclip.storage import fingerprint as storage_fingerprint
from paraclip.storage.artifacts import ArtifactStore
from paraclip.storage.files import file_sha256
from paraclip.tasks.run.execute import STAGES
from paraclip.tasks.run.run import Run, stages_of
from paraclip_core.config import Settings
from paraclip_core.errors import InputError, ModelError
from paraclip_core.paraphrase.engines import SMALL_BYTES
from paraclip_core.settings import load_settings

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
QUERIES = "evaluate.queries={}"
"""The demo has paraphrased queries of its own; with this it has every stage but the control."""
ORDER = (
    "scenes",
    "ingest",
    "paraphrase_1",
    "paraphrase_2",
    "queries",
    "features",
    "built_in_base",
    "finetune",
    "evaluate",
    "report",
)


def fingerprints(tmp_path: Path, *overrides: str) -> dict[str, str]:
    settings = load_settings(DEMO, (QUERIES, *overrides))
    return {name: node.fingerprint for name, node in Run(settings, ArtifactStore(tmp_path / "root")).nodes.items()}


def changed(tmp_path: Path, *overrides: str) -> set[str]:
    before, after = fingerprints(tmp_path), fingerprints(tmp_path, *overrides)
    return {name for name in before if before[name] != after[name]}


def test_every_stage_comes_after_its_inputs() -> None:
    assert tuple(name for name in STAGES if name != "control") == ORDER
    settings = load_settings(DEMO, [QUERIES])
    seen: set[str] = set()
    for name in stages_of(settings):
        assert set(STAGES[name].inputs(settings)) <= seen, name
        seen.add(name)
    assert tuple(stages_of(settings)) == ORDER
    assert "scenes" not in stages_of(Settings())
    assert "built_in_base" not in stages_of(load_settings(DEMO, ["model.base=ViT-B-32:laion2b_s34b_b79k"]))


def test_weights_of_a_local_language_model_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    weights = model / "model.safetensors"
    weights.write_bytes(bytes(SMALL_BYTES + 1))
    os.utime(weights, (0, 0))
    monkeypatch.setattr(files, "SETTLED_NS", 0)
    read: list[Path] = []
    monkeypatch.setattr(storage_fingerprint, "file_sha256", lambda path: read.append(path) or file_sha256(path))
    chosen = ("paraphrase.engine=transformers", f"paraphrase.model={model}", f"run.root={tmp_path / 'root'}")
    one = fingerprints(tmp_path, *chosen)
    assert fingerprints(tmp_path, *chosen) == one
    assert read == [weights]
    with weights.open("r+b") as file:
        file.seek(SMALL_BYTES // 2)
        file.write(b"edit")
    os.utime(weights, (0, 0))
    assert fingerprints(tmp_path, *chosen)["paraphrase_1"] != one["paraphrase_1"]


def test_a_control_is_a_fine_tuning_on_captions_alone(tmp_path: Path) -> None:
    wanted = "evaluate.control=true"
    assert list(stages_of(load_settings(DEMO, [QUERIES, wanted]))) == [*ORDER[:8], "control", *ORDER[8:]]
    assert changed(tmp_path, wanted) == {"evaluate", "report"}
    settings = load_settings(DEMO, [QUERIES, wanted])
    nodes = Run(settings, ArtifactStore(tmp_path / "root")).nodes
    control, tuned = (nodes[name].draft.options["finetune"] for name in ("control", "finetune"))
    assert control == {**tuned, "texts": "captions"}
    assert nodes["evaluate"].draft.inputs["control"] == nodes["control"].fingerprint
    before, after = (fingerprints(tmp_path, wanted, *more) for more in ((), ("finetune.epochs=1",)))
    assert {name for name in before if before[name] != after[name]} == {"finetune", "control", "evaluate", "report"}


def test_an_option_changes_its_stage_and_what_follows_from_it_and_nothing_before(tmp_path: Path) -> None:
    asking = (
        "sampling.n=1",
        "sampling.top_p=0.5",
        "attempts=3",
        "fraction=0.5",
        "seed=9",
        "keep=2",
        "prompts=paper",
        "prompt_1='Say {}'",
    )
    asking += ("filters.max_length_ratio=1.5", "filters.preset=off", "precision=bf16")
    options = {f"paraphrase.{option}": "paraphrase_1" for option in asking}
    options |= {
        "data.scenes.images=60": "scenes",
        "data.min_words=3": "ingest",
        "paraphrase.prompt_2='{}!'": "paraphrase_2",
        "paraphrase.filters.min_caption_similarity=0.1": "paraphrase_2",
        "model.embed_dim=128": "features",
        "built_in_base.epochs=1": "built_in_base",
        "finetune.epochs=1": "finetune",
        "evaluate.split=test": "queries",
        "evaluate.queries={seed: 3}": "queries",
        "evaluate.gate.max_drop={sts/spearman: 2}": "evaluate",
        "name=other": "report",
    }
    before = fingerprints(tmp_path)
    for option, first in options.items():
        after = fingerprints(tmp_path, option)
        changed = {name for name in before if before[name] != after[name]}
        assert {first, "report"} <= changed, option
        assert not changed & set(ORDER[: ORDER.index(first)]), f"{option}: nothing before it changes"


def test_operational_options_and_those_of_other_engines_change_nothing(tmp_path: Path) -> None:
    operational = ["run.threads=1", "run.device=cuda", "features.batch_size=3", "paraphrase.chunk=7"]
    operational += ["run.placement=deployments", "finetune.checkpoint_steps=5"]
    unused = ["vllm.extra={dtype: half}", "openai.extra_body={a: 1}", "file.path=mine.csv"]
    assert changed(tmp_path, *operational, *(f"paraphrase.{option}" for option in unused)) == set()


def test_source_contents_count_and_places_do_not(tmp_path: Path) -> None:
    def ingest(folder: Path) -> str:
        settings = load_settings(None, [f"data.root={folder}", "data.sources.0.path=a.txt", "paraphrase.engine=file"])
        settings = settings.model_copy(update={"model": settings.model.model_copy(update={"base": "x:y"})})
        return Run(settings, ArtifactStore(tmp_path / "root")).node("ingest").fingerprint

    for name, text in (("here", "a red dog\n"), ("there", "a red dog\n"), ("other", "a blue dog\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(text)
    assert ingest(tmp_path / "here") == ingest(tmp_path / "there") != ingest(tmp_path / "other")
    # A relative data.root starts where a worker was started, which a user of the form cannot see.
    with pytest.raises(InputError, match=rf"{re.escape(str(Path.cwd()))}/nowhere/a\.txt does not exist; data.sources"):
        ingest(Path("nowhere"))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("ViT-B-33:openai", "no architecture 'ViT-B-33'; did you mean ViT-B-32"),
        ("ViT-B-33:weights.pt", "no architecture 'ViT-B-33'"),
        ("ViT-B-32:laion2b", "ViT-B-32 has no weights 'laion2b'; available are: .*laion2b_s34b_b79k"),
        ("embeded", "model 'embeded': /.*/embeded does not exist; expected built-in, a folder"),
    ],
)
def test_a_mistyped_base_is_found_before_anything_runs(tmp_path: Path, base: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        fingerprints(tmp_path, f"model.base={base}")
