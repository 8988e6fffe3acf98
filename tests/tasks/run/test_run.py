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
from paraclip_core.errors import ConfigError, InputError, ModelError
from paraclip_core.paraphrase.engines import SMALL_BYTES
from paraclip_core.settings import load_settings, parse_settings

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
QUERIES = "evaluate.queries={}"
"""The demo has paraphrased queries of its own; with this it has every stage but the control."""
ORDER = (
    "ingest", "paraphrase_1", "paraphrase_2", "queries", "features", "built_in_base", "finetune", "evaluate",
    "report",
)  # fmt: skip


def demo_settings(tmp_path: Path, *overrides: str) -> Settings:
    """The demo's settings; their sources are there, and empty."""
    data = tmp_path / "demo-data"
    data.mkdir(exist_ok=True)
    for name in ("captions.jsonl", "images.tar", "paraphrased_queries.jsonl"):
        (data / name).touch()
    return load_settings(DEMO, (QUERIES, f"data.root={data}", *overrides))


def fingerprints(tmp_path: Path, *overrides: str) -> dict[str, str]:
    settings = demo_settings(tmp_path, *overrides)
    return {name: node.fingerprint for name, node in Run(settings, ArtifactStore(tmp_path / "root")).nodes.items()}


def changed(tmp_path: Path, *overrides: str) -> set[str]:
    before, after = fingerprints(tmp_path), fingerprints(tmp_path, *overrides)
    return {name for name in before if before[name] != after[name]}


def test_every_stage_comes_after_its_inputs() -> None:
    assert {*STAGES} == {*ORDER, "control"}
    settings = load_settings(DEMO, [QUERIES])
    of_log = [
        "data.sources=[{path: log.csv}]", "data.index.features=index.npy", "model.base=ViT-B-32:laion2b_s34b_b79k",
    ]  # fmt: skip
    for each in (settings, load_settings(DEMO, [QUERIES, "evaluate.control=true"]), load_settings(None, of_log)):
        seen: set[str] = set()
        for name, stage in stages_of(each).items():
            assert {*stage.inputs(each), *stage.after(each)} <= seen, name
            seen.add(name)
    assert tuple(stages_of(settings)) == ORDER
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
    assert [path for path in read if path.parent == model] == [weights]
    with weights.open("r+b") as file:
        file.seek(SMALL_BYTES // 2)
        file.write(b"edit")
    os.utime(weights, (0, 0))
    assert fingerprints(tmp_path, *chosen)["paraphrase_1"] != one["paraphrase_1"]


def test_a_control_is_a_fine_tuning_on_captions_alone(tmp_path: Path) -> None:
    wanted = "evaluate.control=true"
    assert list(stages_of(load_settings(DEMO, [QUERIES, wanted]))) == [*ORDER[:7], "control", *ORDER[7:]]
    assert changed(tmp_path, wanted) == {"evaluate", "report"}
    settings = demo_settings(tmp_path, wanted)
    nodes = Run(settings, ArtifactStore(tmp_path / "root")).nodes
    control, tuned = (nodes[name].draft.options["finetune"] for name in ("control", "finetune"))
    assert list(control["recipe"]) == [*tuned["recipe"], "ranking", "captions"]
    assert {**control, "recipe": {}} == {**tuned, "texts": "captions", "recipe": {}}
    assert nodes["evaluate"].draft.inputs["control"] == nodes["control"].fingerprint
    before, after = (fingerprints(tmp_path, wanted, *more) for more in ((), ("finetune.epochs=1",)))
    assert {name for name in before if before[name] != after[name]} == {"finetune", "control", "evaluate", "report"}


def test_an_option_changes_its_stage_and_what_follows_from_it_and_nothing_before(tmp_path: Path) -> None:
    asking = (
        "sampling.n=1", "sampling.top_p=0.5", "attempts=3", "fraction=0.5", "seed=9", "keep=2", "prompts=paper",
        "prompt_1='Say {}'", "filters.max_length_ratio=1.5", "filters.preset=off", "precision=bf16",
    )  # fmt: skip
    options = {f"paraphrase.{option}": "paraphrase_1" for option in asking}
    options |= {
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
        ("embeded", "model 'embeded': /.*/embeded does not exist; expected built-in, a folder"),
    ],
)
def test_a_mistyped_base_is_found_before_anything_runs(tmp_path: Path, base: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        fingerprints(tmp_path, f"model.base={base}")


def lacking(settings: Settings, tmp_path: Path) -> list[str]:
    """The lines of the error about what is missing: its places; none without an error."""
    try:
        Run(settings, ArtifactStore(tmp_path / "root")).need_files()
    except ConfigError as error:
        return str(error).replace(f"{tmp_path}/", "").splitlines()[1:]
    return []


def test_everything_that_is_missing_is_named_at_once_with_its_home(tmp_path: Path) -> None:
    (tmp_path / "benchmarks" / "senteval").mkdir(parents=True)
    pairs = {"path": "benchmarks/pairs", "images": "benchmarks/coco/val2017"}
    benchmarks = [
        {"name": "queries", "kind": "paraphrased_retrieval", **pairs, "options": {"pool": "all"}},
        {"name": "sts7", "kind": "sts7", "path": "benchmarks/senteval"},
        {"name": "coco", "kind": "retrieval", "path": "benchmarks/coco.json"},
        {"name": "crepe", "kind": "query_pairs", **pairs},
        {"name": "absent", "kind": "sts", "path": "sts.tsv", "optional": True},
    ]
    sources = [{"path": "laion400m", "format": "webdataset"}]
    given = {
        "data": {"root": str(tmp_path), "sources": sources},
        "paraphrase": {"engine": "openvino", "model": "models/instruct"},
        "evaluate": {"benchmarks": benchmarks},
    }
    lines = lacking(parse_settings(given), tmp_path)
    assert lines[0] == "  laion400m: captions in format webdataset [data.sources[0].path]"
    # One place that several benchmarks read is named once.
    both = [line for line in lines if line.startswith("  benchmarks/pairs: benchmark 'queries' (")]
    assert len(both) == 1 and " and benchmark 'crepe' (" in both[0]
    assert both[0].endswith("[evaluate.benchmarks[0].path, evaluate.benchmarks[3].path]")
    assert (
        "  benchmarks/coco/val2017: images of benchmarks [evaluate.benchmarks[0].images, evaluate.benchmarks[3].images]"
        in lines
    )
    coco = [line for line in lines if line.startswith("  benchmarks/coco.json: benchmark 'coco' (")]
    assert len(coco) == 1 and coco[0].endswith("[evaluate.benchmarks[2].path]")
    assert not any("senteval" in line or "sts.tsv" in line for line in lines)
    assert lines[-1].startswith("Correct data.root (") and lines[-1].endswith(
        "docs/benchmarks.md says where public data is"
    )
    # A folder without captions is no source.
    (tmp_path / "laion400m").mkdir()
    (tmp_path / "laion400m" / "README.md").touch()
    lines = lacking(parse_settings(given), tmp_path)
    assert lines[0] == "  laion400m: holds no captions in format webdataset [data.sources[0].path]"
    assert any(line.endswith("models/instruct: the language model [paraphrase.model]") for line in lines)


def test_files_of_every_kind_are_looked_for(tmp_path: Path) -> None:
    sources = [{"path": "a.txt", "images": "pics"}, {"path": "b.txt", "images": "pics"}]
    given = {"data": {"root": str(tmp_path), "sources": sources}, "paraphrase": {"engine": "file"}}
    given["paraphrase"]["file"] = {"path": "mine.csv"}
    (tmp_path / "a.txt").write_text("a red dog\n")
    pics = "  pics: a tar or folder with the captions' images [data.sources[0].images, data.sources[1].images]"
    mine = "  mine.csv: paraphrases, or captions of the same images [paraphrase.file.path]"
    absent = "  b.txt: captions [data.sources[1].path]"
    assert lacking(parse_settings(given), tmp_path)[:-1] == [absent, mine, pics]
    # Where bad files are skipped, some captions are enough.
    given["data"]["on_error"] = "skip"
    assert lacking(parse_settings(given), tmp_path)[:-1] == [mine, pics]
    model = {"engine": "transformers", "model": str(tmp_path / "instruct")}
    told = lacking(parse_settings(given | {"paraphrase": model}), tmp_path)
    assert told[0] == "  instruct: the language model [paraphrase.model]"
    for name in ("pics", "instruct"):
        (tmp_path / name).mkdir()
    assert lacking(parse_settings(given | {"paraphrase": model}), tmp_path) == []


def test_what_the_hub_does_not_have_is_named_with_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(address: str) -> None:
        if address.startswith("hf://"):
            raise InputError(f"{address} cannot be fetched")

    monkeypatch.setattr("paraclip_core.hub.fetch", fetch)
    flickr = "evaluate.benchmarks=[{name: mine, kind: sts, path: mine.tsv}]"
    lines = lacking(load_settings("paper-small", [f"data.root={tmp_path}", flickr]), tmp_path)
    assert re.match(
        r"  hf://datasets/sayakpaul/\S+ cannot be fetched: captions in format parquet \[data.sources", lines[0]
    )
    assert lines[1].startswith("  mine.tsv: benchmark 'mine' (STS) [")


def test_the_papers_small_recipe_has_a_control() -> None:
    small = load_settings("paper-small")
    assert "control" in stages_of(small) and [*small.finetune.recipes()] == ["published"]
    assert small.paraphrase.engine == "vllm"
