"""A rehearsal of `configs/paper-small.yaml`: its real shapes, without weights, network or language model.

    python benchmarks/rehearse_paper.py [--images 800] [--epochs 25] [--threads 0] [--folder FOLDER]

A hub on this machine has the dataset by its name and columns; its rows are Flickr8k's photographs with a caption each
(PARACLIP_DATA). The base is a ViT-B-32 with random weights, and a server with OpenAI's interface answers by rule, so
the models' figures mean nothing; seconds and memory do. One learning rate is tried. Each stage runs in a process of its
own; the peak is that of the largest process below it. At last `paraclip run` finds all stages and shows the result.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from record import arguments, data_folder

sys.path.insert(0, str(Path(__file__).parents[1]))

from paraclip_core.settings import load_settings
from tests.kit.hub_server import HubServer
from tests.kit.openai_server import OpenAIServer, reply, words_of

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = REPOSITORY / "configs" / "paper-small.yaml"
DATASET = "sayakpaul/coco-30-val-2014"
SHARD = "data/train-00000-of-00001-0123456789abcdef.parquet"
ARCHITECTURE = "ViT-B-32-quickgelu"
GIB = 2**30


def write_rows(path: Path, count: int) -> None:
    """The first `count` photographs with one caption each, in the dataset's columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    flickr = data_folder("flickr8k")
    if flickr is None:
        raise SystemExit("set PARACLIP_DATA to a folder with flickr8k/dataset_flickr8k.json and images_128.tar")
    described = json.loads((flickr / "dataset_flickr8k.json").read_text())["images"][:count]
    with tarfile.open(flickr / "images_128.tar") as tar:
        files = [tar.extractfile(f"images/{image['filename']}") for image in described]
        pictures = [{"bytes": file.read(), "path": None} for file in files if file is not None]
    captions = [image["sentences"][0]["raw"] for image in described]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(pictures, kind), "caption": captions}), path)


def write_base(folder: Path) -> None:
    """A base of the published shapes with random weights."""
    import open_clip
    import torch

    from paraclip_core.clip.export import save_release
    from paraclip_core.clip.model import ClipModel

    torch.manual_seed(0)
    model: Any = open_clip.create_model(ARCHITECTURE).eval()
    config = open_clip.get_model_config(ARCHITECTURE)
    assert config is not None
    save_release(ClipModel(model, config, dict(model.visual.preprocess_cfg), ARCHITECTURE), folder, "")


def run_one(name: str, overrides: list[str]) -> None:
    """One stage of the run."""
    from paraclip.tasks.run.execute import run_stage
    from paraclip.tasks.run.run import Run

    run_stage(name, Run(load_settings(CONFIG, overrides)))


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Step 1 puts a few words before a caption, step 2 some behind it."""
    words = words_of(asked)
    text = re.findall(r'"(.*)"', words, re.DOTALL)[0].rstrip(" .")
    return reply(f"{text}, as a photograph shows" if "avoiding" in words else f"there is {text}")


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, float, float]:
    """Seconds, CPU seconds and the peak in GiB of a process and its children."""
    started = time.monotonic()
    process = subprocess.Popen(command, env=environment, cwd=REPOSITORY)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} ended with {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - started, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / GIB


def rehearse(options: argparse.Namespace, folder: Path) -> None:
    """Prepare, run each stage, and show the result."""
    script = [sys.executable, str(Path(__file__).resolve())]
    with HubServer() as hub, OpenAIServer() as server:
        server.answer = answer
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | {
            "PYTHONPATH": str(REPOSITORY),
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "PARACLIP_ROOT": str(folder / "runs"),
        }
        overrides = [
            f"run.root={folder / 'runs'}",
            f"model.base=local-dir:{folder / 'base'}",
            "paraphrase.engine=openai",
            "paraphrase.model=smol",
            f"paraphrase.openai.base_url={server.url}",
            f"finetune.epochs={options.epochs}",
            "finetune.learning_rate=1e-5",
            f"run.threads={options.threads}",
        ]
        measured([*script, "--prepare", str(folder), "--images", str(options.images)], environment)
        hub.repos["dataset", DATASET] = {SHARD: (folder / "rows.parquet").read_bytes(), "README.md": b"not fetched"}
        sets = [part for each in overrides for part in ("--set", each)]
        paraclip = [sys.executable, "-m", "paraclip.flows.cli"]
        measured([*paraclip, "plan", "-c", str(CONFIG), *sets], environment)
        names = json.loads(subprocess.check_output([*script, "--names", *sets], env=environment, cwd=REPOSITORY))
        for name in names:
            seconds, cpu, peak = measured([*script, "--stage", name, *sets], environment)
            print(f"{name:13} {seconds:6.1f} s {cpu:6.1f} CPU s {peak:5.2f} GiB", flush=True)
        print(f"the server answered {sum(server.answered.values())} requests", flush=True)
        measured([*paraclip, "run", "-c", str(CONFIG), *sets], environment)


def main() -> None:
    """The rehearsal, or the part of it that a child does."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--epochs", type=float, default=25)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores")
    parser.add_argument("--folder", type=Path, help="where everything is kept; default: a temporary folder")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--names", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--set", action="append", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        options.prepare.mkdir(parents=True, exist_ok=True)
        write_rows(options.prepare / "rows.parquet", options.images)
        write_base(options.prepare / "base")
    elif options.stage:
        run_one(options.stage, options.set)
    elif options.names:
        from paraclip.tasks.run.run import stages_of

        print(json.dumps(list(stages_of(load_settings(CONFIG, options.set)))))
    elif options.folder:
        rehearse(options, options.folder.resolve())
    else:
        with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
            rehearse(options, Path(folder))


if __name__ == "__main__":
    main()
