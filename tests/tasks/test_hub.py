"""Exports on their way to the hub and sources from it, against a stand-in that keeps what it was sent."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from paraclip.flows.cli import run_cli
from paraclip.tasks.push import published_card
from paraclip_core.clip.export import save_release
from tests.kit.drawn_clip import drawn_clip
from tests.kit.hub_server import HubServer
from tests.kit.search_home import CONFIG

REPOSITORY = Path(__file__).parents[2]
CARD = """---
library_name: open_clip
license: other
license_name: CC-BY-4.0
base_model: laion/base
---

# Tuned

```python
model = open_clip.create_model("local-dir:PATH_OF_THIS_FOLDER")
```
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


def started(hub: HubServer, home: Path, *arguments: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, since huggingface_hub reads its environment once."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
        "PYTHONPATH": str(REPOSITORY),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub.token if token is None else token,
        "HF_HUB_DISABLE_XET": "1",
        "PARACLIP_ROOT": str(home / "runs"),
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=300)


COMMANDS = """
import json, sys
from paraclip.flows.cli import run_cli
sys.exit(max(run_cli(command) for command in json.loads(sys.argv[1])))
"""


def paraclip(
    hub: HubServer, home: Path, *commands: Sequence[str], token: str | None = None
) -> subprocess.CompletedProcess[str]:
    """The commands, one after the other."""
    return started(hub, home, "-c", COMMANDS, json.dumps(commands), token=token)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_release(drawn_clip(CONFIG), tmp_path / "model", CARD)
    return tmp_path / "model"


def secrets(hub: HubServer, folder: Path) -> list[str]:
    """Where the token lies below a folder, or went beyond the hub's own headers."""
    token = hub.token.encode()
    files = [str(path) for path in folder.rglob("*") if path.is_file() and token in path.read_bytes()]
    sent = [f"{each.method} {each.path}" for each in hub.requests if token in each.body or hub.token in each.path]
    return files + sent + [each.path for each in hub.requests if each.method == "PUT" and each.authorization]


def test_an_export_is_pushed_in_one_commit_and_can_be_loaded(hub: HubServer, model: Path, tmp_path: Path) -> None:
    options = ["--language", "en", "--dataset", "me/words", "--license", "cc-by-4.0"]
    assert run_cli(["export", str(model), str(tmp_path / "out"), *options]) == 0
    back = ["export", "hf://me/tuned", "back", "--format", "hf"]
    done = paraclip(hub, tmp_path, ["push", "out", "me/tuned"], back)
    assert done.returncode == 0 and (tmp_path / "back" / "model.safetensors").is_file(), done.stderr
    assert f"pushed to {hub.url}/me/tuned" in done.stdout and len(hub.commits) == 1
    repo = hub.repos["model", "me/tuned"]
    assert set(repo) == {"README.md", "open_clip_config.json", "open_clip_model.safetensors"}
    assert repo["open_clip_model.safetensors"] == (tmp_path / "out" / "open_clip_model.safetensors").read_bytes()
    head = yaml.safe_load(repo["README.md"].decode().split("---\n")[1])
    stated = {"language": ["en"], "datasets": ["me/words"], "license": "cc-by-4.0", "base_model": "laion/base"}
    assert {name: head[name] for name in stated} == stated and "license_name" not in head
    assert 'create_model("hf-hub:me/tuned")' in repo["README.md"].decode()
    assert 'create_model("local-dir:PATH_OF_THIS_FOLDER")' in (tmp_path / "out" / "README.md").read_text()
    assert hub.token not in done.stdout + done.stderr and secrets(hub, tmp_path) == []


def test_a_smaller_data_set_takes_the_place_of_the_one_before(hub: HubServer, tmp_path: Path) -> None:
    """Rows that were removed in between are no longer published."""
    for count in (2, 1):
        folder = tmp_path / f"{count} shards"
        (folder / "data").mkdir(parents=True)
        (folder / "README.md").write_text("---\nlicense: other\n---\n# Captions\n")
        for number in range(count):
            shard = folder / "data" / f"train-{number:05}-of-{count:05}.parquet"
            pq.write_table(pa.table({"caption": [f"a dog of {count}"]}), shard)
    done = paraclip(hub, tmp_path, ["push", "2 shards", "me/words"], ["push", "1 shards", "me/words"])
    assert done.returncode == 0 and len(hub.commits) == 2, done.stderr
    assert set(hub.repos["dataset", "me/words"]) == {"README.md", "data/train-00000-of-00001.parquet"}


def test_what_cannot_be_pushed_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, name, code, message in (
        (model, "a b", 1, "could not be pushed to a b"),
        (model, "me/x", 1, "HF_HUB_OFFLINE"),
        (tmp_path, "me/x", 2, f"{tmp_path} holds no README.md"),
    ):
        assert run_cli(["push", str(folder), name]) == code
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("token", "message"),
    [
        pytest.param("", "log in with `hf auth login`", marks=pytest.mark.nightly),
        ("hf_wrong", "refuses to write to me/x"),
    ],
)
def test_a_login_is_needed(token: str, message: str, hub: HubServer, model: Path, tmp_path: Path) -> None:
    done = paraclip(hub, tmp_path, ["push", str(model), "me/x"], token=token)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert hub.commits == [] and "hf_wrong" not in done.stderr


READ = """
import sys
from pathlib import Path
from paraclip_core.captions.options import DataOptions, SourceOptions
from paraclip_core.captions.pipeline import CaptionPipeline
from paraclip_core.captions.sources import list_files
for place in sys.argv[1:]:
    data = DataOptions(sources=[SourceOptions(path=place)])
    files = list_files(Path(), data.sources)
    rows = [outcome.accepted.num_rows for file in files for outcome in CaptionPipeline(data, files).run(file)]
    print(files[0].name, *rows)
"""


def test_captions_are_read_from_the_hub(hub: HubServer, tmp_path: Path) -> None:
    rows = "".join(json.dumps({"caption": f"picture number {n}", "image": f"{n}.png"}) + "\n" for n in range(5))
    hub.repos["dataset", "them/captions"] = {"text/a.jsonl": rows.encode(), "big.bin": b"x"}
    places = ["hf://datasets/them/captions/text", "hf://datasets/them/captions@main/text/a.jsonl"]
    done = started(hub, tmp_path, "-c", READ, *places, "hf://datasets/them/nothing")
    assert done.stdout.splitlines() == [
        "hf:/datasets/them/captions/text/a.jsonl 5",
        f"{places[1].replace('//', '/')} 5",
    ]
    assert "InputError: hf://datasets/them/nothing cannot be fetched" in done.stderr
    assert not any("big.bin" in each.path for each in hub.requests), "only what is named is fetched"


def test_the_papers_small_recipe_is_planned_with_captions_and_images_from_the_hub(
    hub: HubServer, tmp_path: Path
) -> None:
    pictures = [{"bytes": b"picture %d" % n, "path": None} for n in range(200)]
    rows = pa.table({"image": pictures, "caption": [f"a dog with number {n} runs" for n in range(200)]})
    pq.write_table(rows, file := io.BytesIO())
    shard = "data/train-00000-of-00010-45de7542ea7caa89.parquet"
    hub.repos["dataset", "sayakpaul/coco-30-val-2014"] = {shard: file.getvalue(), "ref_embs_coco_30k.npy": b"x"}
    done = paraclip(hub, tmp_path, ["plan", "-c", "paper-small", "--json"])
    assert done.returncode == 0, done.stderr
    stages = {stage["stage"]: stage for stage in json.loads(done.stdout)["stages"]}
    train = stages["paraphrase_1"]["rows"]
    assert 160 <= train < 200 and stages["paraphrase_1"]["requests"] == stages["paraphrase_2"]["requests"] == train
    assert stages["queries"]["requests"] == 2 * (200 - train)
    assert stages["ingest"]["rows"] == stages["features"]["rows"] == 200 and "control" in stages
    assert not any("npy" in each.path for each in hub.requests)


def test_a_published_card_loads_from_the_hub() -> None:
    card = (
        'import onnxruntime\nInferenceSession("PATH_OF_THIS_FOLDER/text_model.onnx")\n'
        "read_parquet('PATH_OF_THIS_FOLDER/data/train-*.parquet')\nfrom_pretrained(\"PATH_OF_THIS_FOLDER\")\n"
    )
    published = published_card(card, "me/x")
    assert 'import hf_hub_download\nInferenceSession(hf_hub_download("me/x", "text_model.onnx"))' in published
    assert "'hf://datasets/me/x/data/train-*.parquet'" in published and 'from_pretrained("me/x")' in published
