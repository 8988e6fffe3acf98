"""Models out of the store, for other libraries; and the proof that an index stays valid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from paraclip.flows.cli import run_cli
from paraclip.storage.artifacts import Artifact, ArtifactStore
from paraclip.tasks.export import export_model
from paraclip_core.clip.encode import encode_images, encode_texts
from paraclip_core.clip.export import save_release
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.model import ClipModel, image_encoder_hash
from paraclip_core.clip.verify_index import verify_index
from paraclip_core.errors import ConfigError, InputError
from paraclip_core.evaluation.churn import Churn
from paraclip_core.evaluation.thresholds import Spread
from paraclip_core.training.card import release_card
from tests.kit.drawn_clip import drawn_clip
from tests.kit.search_home import CONFIG
from tests.tasks.builders import committed

TEXTS = ["a dog", "two men on a boat"]
ROW = {"benchmark": "paraphrased_queries", "kind": "paraphrased_retrieval", "metric": "ao@10", "n": 9, "clusters": 9}
FIGURES = {"base": 11.0, "tuned": 14.0, "delta": 3.0, "low": 1.0, "high": 5.0}
SPREAD = Spread([0.3] * 5, [0.1] * 5)
CHURN = Churn(9, 1000, 10, 60.0, [0.0] * 11, 24.0, None, [], {"base": SPREAD, "tuned": SPREAD}, []).as_json()
Capture = pytest.CaptureFixture[str]


def _model() -> ClipModel:
    torch.set_num_threads(1)
    return drawn_clip(CONFIG)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "runs")


@pytest.fixture
def tuned(store: ArtifactStore) -> Artifact:
    """A tuned model as the stage leaves it, with evaluations of another model and against another base, too."""
    clip = _model()
    about = {"base": "x", "image_encoder_hash": image_encoder_hash(clip), "options": {}}
    card = release_card(title="Tuned", summary="", licenses={"CC0": 1}, sources={"made": 1}, **about)

    def write(out: Path) -> None:
        save_release(clip, out / "release", card)

    artifact = committed(store, "finetune", "f" * 32, write=write)
    own = {"finetune": artifact.fingerprint}
    of = {"a": own, "b": {"finetune": "0" * 32}, "c": own | {"built_in_base": "0" * 32}}
    for (name, inputs), delta in zip(of.items(), (2.0, 3.0, 4.0), strict=True):
        rows = [{**ROW, **FIGURES, "delta": delta}]
        comparison = {"rows": rows, "verdict": "promote", "reason": "it rose", "confidence": 0.95}
        text = json.dumps(comparison)
        changes = {**CHURN, "queries": 100 * round(delta)}

        def evaluation(out: Path, text: str = text, changes: dict[str, Any] = changes) -> None:
            (out / "comparison.json").write_text(text)
            (out / "churn.json").write_text(json.dumps(changes))

        committed(store, "evaluate", name * 32, inputs, evaluation)
    return artifact


def test_an_open_clip_release_has_its_evaluation_in_its_card(
    store: ArtifactStore, tuned: Artifact, tmp_path: Path
) -> None:
    release = tuned.path / "release"
    before = (release / "README.md").read_bytes()
    for path in [*release.iterdir(), release]:
        path.chmod(path.stat().st_mode & ~0o222)
    files = export_model(release, tmp_path / "out", store=store)
    # An export of a read-only artifact can be written.
    assert all(path.stat().st_mode & 0o200 for path in [*(tmp_path / "out").iterdir(), tmp_path / "out"])
    release.chmod(0o755)
    assert files == ["README.md", "open_clip_config.json", "open_clip_model.safetensors"]
    text = (tmp_path / "out/README.md").read_text()
    read: Any = ModelCard(text).data
    assert [(result.dataset_name, result.metric_value) for result in read.eval_results] == [
        ("paraphrased_queries", 14.0)
    ]
    assert "+2.00 [+1.00, +5.00]" in text and text.count("For the same query, 6.0 of the first ten images stay") == 1
    assert "over 200 queries and 1,000 images" in text
    assert (tuned.path / "release/README.md").read_bytes() == before and not store.verify(tuned)
    code = text.partition("```python\n")[2].partition("```")[0].replace("PATH_OF_THIS_FOLDER", str(tmp_path / "out"))
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    model = namespace["model"]
    # Batch norm would make an image's embedding depend on the images beside it.
    assert not any(module.training for module in model.modules())
    assert torch.equal(
        model.text_projection, load_clip(str(tuned.path / "release")).model.get_parameter("text_projection")
    )
    with pytest.raises(ConfigError, match="is not empty"):
        export_model(tuned.path / "release", tmp_path / "out", store=store)


def test_other_layouts_have_their_files_and_the_figures(store: ArtifactStore, tuned: Artifact, tmp_path: Path) -> None:
    release = tuned.path / "release"
    assert {"README.md", "config.json", "model.safetensors"} <= set(export_model(release, tmp_path / "hf", "hf", store))
    modes = {path.stat().st_mode for path in (tmp_path / "hf").rglob("*") if path.is_file()}
    assert len(modes) == 1, "weights are as readable as the rest"
    read: Any = ModelCard((tmp_path / "hf/README.md").read_text()).data
    assert read.library_name == "transformers" and read.eval_results


def test_the_call_in_an_onnx_card_runs(store: ArtifactStore, tuned: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    export_model(tuned.path / "release", tmp_path / "onnx", "onnx", store)
    card = (tmp_path / "onnx/README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0].replace("PATH_OF_THIS_FOLDER", str(tmp_path / "onnx"))
    exec(code, namespace := {})
    expected = encode_texts(load_clip(str(tuned.path / "release")), ["a dog on a beach"])
    np.testing.assert_allclose(namespace["vectors"], expected, atol=1e-5)


def test_a_failed_export_leaves_nothing(store: ArtifactStore, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert run_cli(["export", str(tmp_path / "w.pt"), str(out), "-f", "hf", "--root", str(store.root)]) == 2
    (tmp_path / "w.pt").write_bytes(b"garbage")
    assert run_cli(["export", f"ViT-B-32:{tmp_path / 'w.pt'}", str(out), "-f", "hf", "--root", str(store.root)]) == 1
    assert "w.pt" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.lstrip(".").startswith("out")) == []


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        values = np.random.RandomState(number).randint(0, 256, (40, 50, 3)).astype(np.uint8)
        Image.fromarray(values).save(folder / f"{number}.png")
    return folder


def test_an_index_stays_valid(tmp_path: Path, pictures: Path, capsys: Capture) -> None:
    clip = _model()
    save_release(clip, tmp_path / "base", "card")
    features = encode_images(clip, [Image.open(path).convert("RGB") for path in sorted(pictures.iterdir())])
    np.save(tmp_path / "features.npy", features)
    with torch.no_grad():
        clip.model.get_parameter("text_projection").mul_(2)
    save_release(clip, tmp_path / "tuned", "card")
    with torch.no_grad():
        clip.model.get_parameter("visual.proj")[0, 0] += 1
    save_release(clip, tmp_path / "other", "card")
    more = ["--images", str(pictures), "--features", str(tmp_path / "features.npy"), "--sample", "3"]

    def run(tuned: str, *extra: str) -> tuple[int, str]:
        code = run_cli(["verify-index", "--base", str(tmp_path / "base"), "--tuned", str(tmp_path / tuned), *extra])
        return code, capsys.readouterr().out

    code, text = run("tuned", *more, "--json")
    proof = json.loads(text)
    assert code == 0 and proof["valid"]
    checked = ["image encoder", "preprocessing", "images", "stored features"]
    assert [check["what"] for check in proof["checks"]] == checked
    assert "3 of 3 images" in proof["checks"][2]["detail"] and "3 of 3 stored" in proof["checks"][3]["detail"]
    code, text = run("tuned")
    assert code == 0 and "valid: true" in text
    code, text = run("other", *more, "--json")
    assert code == 1 and [check["valid"] for check in json.loads(text)["checks"]][:3] == [False, True, False]

    np.save(tmp_path / "features.npy", np.roll(features, 1, axis=0))
    code, text = run("tuned", *more, "--json")
    assert code == 1 and [check["valid"] for check in json.loads(text)["checks"]] == [True, True, True, False]


def test_what_cannot_be_verified_is_reported(tmp_path: Path, pictures: Path) -> None:
    save_release(_model(), tmp_path / "base", "card")
    (tmp_path / "none").mkdir()
    (tmp_path / "empty.npy").touch()
    np.save(tmp_path / "few.npy", np.zeros((4, 32)))
    for images, features, message in (
        (None, "few.npy", "give --images"),
        (pictures, "absent.npy", "does not exist"),
        (pictures, "empty.npy", "cannot read features"),
        (pictures, "few.npy", r"\(4, 32\); expected one row for each of the 5 images"),
        (tmp_path / "none", None, "has no images"),
    ):
        with pytest.raises(InputError, match=message):
            base = str(tmp_path / "base")
            verify_index(base, base, images, None if features is None else tmp_path / features)
