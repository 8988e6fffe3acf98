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
from served import Api, declare, make_data, nightly_settings, serving, write_lines
from waiting import eventually  # pyright: ignore[reportMissingImports]

from paraclip.storage.artifacts import Artifact, ArtifactStore

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.nightly,
    pytest.mark.timeout(2100),
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

EVERY_MINUTE = {"cron": "* * * * *", "timezone": "UTC", "active": True}


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
    parameters = {"settings": nightly_settings(root, data)}
    file = declare(tmp_path / "prefect.yaml", "regenerate", parameters=parameters, schedules=[EVERY_MINUTE])
    (nightly,) = yaml.safe_load(file.read_text())["deployments"]
    assert nightly["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    with serving(root, tmp_path, file) as api:
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
