"""The nightly run as cron fires it, once a minute: one at a time, only what is new, and a decision every time."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from served import Api, serving
from waiting import eventually  # pyright: ignore[reportMissingImports]

from paraclip.storage.artifacts import Artifact, ArtifactStore

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.nightly,
    pytest.mark.timeout(2100),
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

REPOSITORY = Path(__file__).parents[2]
COLOURS = {"red": 0xDC1E1E, "blue": 0x1E1EDC, "green": 0x1EC81E, "white": 0xF0F0F0}
COLOURS |= {"black": 0x0A0A0A, "grey": 0x808080, "orange": 0xFA9614, "purple": 0x961EA0}
THINGS = {"ball": "sphere", "dog": "puppy", "car": "vehicle", "tree": "plant"}
THINGS |= {"house": "home", "boat": "vessel", "cup": "mug", "hat": "cap"}
HELD_OUT = 3
"""Every third image is in the split that is evaluated."""


def picture(colour: str, number: int) -> Image.Image:
    """A background of this colour with a square whose place tells the thing."""
    red, green, blue = (COLOURS[colour] >> shift & 255 for shift in (16, 8, 0))
    image = Image.new("RGB", (32, 32), (red, green, blue))
    left, top = 8 * (number % 4), 16 * (number // 4)
    image.paste((255 - red, 30 * number, 255 - blue), (left, top, left + 8, top + 16))
    return image


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """A whole file or none, for a run may read it at any moment."""
    draft = path.with_suffix(".new")
    draft.write_text("".join(json.dumps(row) + "\n" for row in rows))
    draft.replace(path)


def make_data(folder: Path) -> list[dict[str, Any]]:
    """64 tiny images with a caption each, paraphrases of these and of more, and rewordings of what is held out."""
    (folder / "images").mkdir(parents=True)
    captions, paraphrases, rewordings = [], [], []
    for number, (colour, thing) in enumerate((c, t) for c in COLOURS for t in THINGS):
        image, caption, other = f"{number:02d}.png", f"a {colour} {thing}", f"the {THINGS[thing]} is {colour}"
        picture(colour, list(THINGS).index(thing)).save(folder / "images" / image)
        held_out = number % HELD_OUT == 0
        captions.append({"image": image, "caption": caption, "split": "val" if held_out else "train"})
        for text in (caption, f"{caption} again"):
            row = {"image": image, "caption": text, "paraphrase_1": f"one {colour} {thing} outside"}
            paraphrases.append(row | {"paraphrase_2": other})
        if held_out:
            rewordings.append({"image_id": image, "caption": caption, "rewording": other})
    write_lines(folder / "captions.jsonl", captions)
    write_lines(folder / "paraphrases.jsonl", paraphrases)
    write_lines(folder / "rewordings.jsonl", rewordings)
    return captions


def every_minute(path: Path, root: Path, data: Path) -> Path:
    """The repository's deployment of `regenerate`, with a tiny run and another cron line."""
    settings = {
        "name": "nightly",
        "data": {"root": str(data), "sources": [{"path": "captions.jsonl", "images": "images"}]},
        "paraphrase": {"engine": "file", "file": {"path": "paraphrases.jsonl"}, "gates": {"preset": "off"}},
        "model": {"base": "embedded", "text_width": 64, "text_layers": 1, "embed_dim": 32},
        # α is chosen among rankings of the images held out, so they must be more than ten.
        "bootstrap": {"epochs": 20, "batch_size": 16, "precision": "fp32", "validation": 0.45},
        "finetune": {
            "epochs": 60,
            "batch_size": 16,
            "precision": "fp32",
            "learning_rate": 0.001,
            "validation": 0.45,
            "alpha": {"max_recall_drop": 100},
        },
        "evaluate": {
            "benchmarks": [
                {"name": "rewordings", "kind": "paraphrased_retrieval", "path": "rewordings.jsonl"},
                {"name": "captions", "kind": "retrieval"},
            ],
        },
        "run": {"threads": 1, "root": str(root)},
    }
    declared = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())
    nightly = next(d for d in declared["deployments"] if d["name"] == "regenerate")
    nightly["parameters"] = {"settings": settings}
    assert nightly["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    nightly["schedules"][0]["cron"] = "* * * * *"
    path.write_text(yaml.safe_dump(declared | {"deployments": [nightly]}))
    return path


def finished(api: Api) -> list[dict[str, Any]]:
    """Runs that have ended; each must have been fired by the schedule and have completed."""
    found = [run for run in api.runs() if run["state"]["type"] not in ("PENDING", "RUNNING")]
    assert {(run["flow"], run["auto_scheduled"], run["state"]["name"]) for run in found} <= {
        ("regenerate", True, "Completed")
    }
    return found


def decision(root: Path) -> dict[str, Any]:
    path = root / "results" / "nightly" / "promotion.json"
    return json.loads(path.read_text()) if path.exists() else {}


def newest(store: ArtifactStore, stage: str) -> Artifact:
    return store.list(stage)[-1]


def test_cron_regenerates_what_is_new(tmp_path: Path) -> None:
    root, data = tmp_path / "root", tmp_path / "data"
    captions, store = make_data(data), ArtifactStore(root)
    with serving(root, tmp_path, every_minute(tmp_path / "prefect.yaml", root, data)) as api:
        eventually(lambda: finished(api), "no firing has completed", 900)
        first = decision(root)
        assert first["moved"] and "its first model" in first["reason"]
        assert (store.channel("production") or {})["fingerprint"] == first["after"]
        made = newest(store, "paraphrase_1").manifest.metrics
        trained = [row for row in captions if row["split"] == "train"]
        assert (made["generated"], made["cached"]) == (len(trained), 0)

        more = [row | {"caption": f"{row['caption']} again"} for row in trained[:2]]
        write_lines(data / "captions.jsonl", captions + more)
        eventually(lambda: decision(root)["after"] != first["after"], "no firing has seen the new captions", 900)
        second, seen = decision(root), len(finished(api))
        eventually(lambda: len(finished(api)) > seen, "the run that decided has not ended")
        runs = finished(api)
        # The firing after it may have shown its own decision already.
        wanted = {"artifacts": {"key": {"any_": ["nightly-promotion"]}}}
        shown = [artifact["data"] for artifact in api.call("artifacts/filter", wanted)]

    made = newest(store, "paraphrase_1").manifest.metrics
    assert (made["generated"], made["cached"]) == (len(more), len(trained)), "only what is new was asked for"
    assert second["before"] == first["after"] and second["after"] == newest(store, "finetune").fingerprint
    assert (store.channel("production") or {})["fingerprint"] == second["after" if second["moved"] else "before"]
    assert ("moved from" in second["reason"]) if second["moved"] else (" is held: " in second["reason"])
    if "against the champion" in second["reason"]:
        assert {row["benchmark"] for row in second["against_champion"]} == {"rewordings", "captions"}
        assert len(store.list("evaluate")) == 3, "the champion was measured on the benchmarks of the new run"
    assert any(second["reason"] in text for text in shown)

    times = [[datetime.fromisoformat(run[name]) for name in ("start_time", "end_time")] for run in runs]
    assert len(times) >= 2
    assert all(end <= start for (_, end), (start, _) in pairwise(times)), "two firings overlapped"
