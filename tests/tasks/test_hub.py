"""Models, captions and images from the hub, against a stand-in."""

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

from paraclip_core.clip.export import save_release
from tests.kit.drawn_clip import drawn_clip
from tests.kit.hub_server import HubServer
from tests.kit.search_home import CONFIG

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


def started(hub: HubServer, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, since huggingface_hub reads its environment once."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
        "PYTHONPATH": str(REPOSITORY),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": hub.url,
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


def paraclip(hub: HubServer, home: Path, *commands: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The commands, one after the other."""
    return started(hub, home, "-c", COMMANDS, json.dumps(commands))


def test_a_model_is_read_from_the_hub(hub: HubServer, tmp_path: Path) -> None:
    save_release(drawn_clip(CONFIG), tmp_path / "model", "# Tuned\n")
    hub.repos["model", "me/tuned"] = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    done = paraclip(hub, tmp_path, ["export", "hf://me/tuned", "back", "--format", "hf"])
    assert done.returncode == 0 and (tmp_path / "back" / "model.safetensors").is_file(), done.stderr


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
    assert not any("big.bin" in path for path in hub.paths), "only what is named is fetched"


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
    assert not any("npy" in path for path in hub.paths)
