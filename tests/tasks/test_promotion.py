"""Whether a challenger takes over a channel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paraclip_core.errors import ArtifactError, ConfigError
from storage.artifacts import ArtifactStore
from tasks.promotion import check_channel, decide
from tasks.results import Result, comparison_rows


def result(fingerprint: str, verdict: str) -> Result:
    stages: list[dict[str, Any]] = [{"stage": "finetune", "fingerprint": fingerprint, "state": "made"}]
    return Result("run", stages, {"verdict": verdict, "reason": "ao@10 +1.0 [0.5, 1.5]"})


def test_a_better_challenger_moves_the_channel(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    decision = decide(store, "production", result("aaa", "promote"))
    assert decision["moved"] and decision["before"] is None and "ao@10" in decision["reason"]
    channel = store.channel("production")
    assert channel is not None and channel["fingerprint"] == "aaa" and channel["stages"] == {"finetune": "aaa"}


def test_a_held_challenger_leaves_it_alone_and_says_why(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    decide(store, "production", result("aaa", "promote"))
    decision = decide(store, "production", result("bbb", "hold"))
    assert not decision["moved"] and (decision["before"], decision["after"]) == ("aaa", "bbb")
    assert "ao@10 +1.0" in decision["reason"]
    channel = store.channel("production")
    assert channel is not None and channel["fingerprint"] == "aaa"


def test_an_unchanged_model_is_kept(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    decide(store, "production", result("aaa", "promote"))
    decision = decide(store, "production", result("aaa", "promote"))
    assert not decision["moved"] and decision["reason"].startswith("kept")


def test_headlines_come_first_and_numbers_are_sorted_as_numbers() -> None:
    metrics = {"recall@10": 1.0, "recall@5": 2.0, "ao@10": 3.0}
    summary = {"models": {"base": {"b": metrics}, "tuned": {"b": metrics}}, "deltas": {}, "intervals": {}}
    rows = comparison_rows(summary)
    assert [row["metric"] for row in rows] == ["ao@10", "recall@5", "recall@10"]
    assert rows[0]["delta"] is None and rows[0]["low"] is None


def test_a_channel_that_every_run_moves_cannot_be_the_promoted_one(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    check_channel("nightly", "production", store)
    with pytest.raises(ConfigError, match="follows every run"):
        check_channel("production", "production", store)
    with pytest.raises(ArtifactError, match="cannot be a channel's name"):
        check_channel("nightly", "../production", store)
