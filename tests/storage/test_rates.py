"""Measured rates of engines."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest

from paraclip_core.errors import ArtifactError
from storage.rates import known_rate, known_trials, remember_rate, remember_trial


def test_the_newest_counts_for_each_engine_model_and_what_it_is_asked(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert known_rate(cache, "vllm", "a/b@1", "n=1") is None
    remember_rate(cache, "vllm", "a/b@1", "n=1", {"requests_per_second": 1.0})
    remember_rate(cache, "vllm", "a/b@2", "n=1", {"requests_per_second": 2.0})
    remember_rate(cache, "vllm", "a/b@1", "n=1", {"requests_per_second": 3.0})
    assert known_rate(cache, "vllm", "a/b@1", "n=1") == {"requests_per_second": 3.0}
    assert known_rate(cache, "vllm", "a/b@2", "n=1") == {"requests_per_second": 2.0}
    assert known_rate(cache, "openai", "a/b@1", "n=1") is None
    assert known_rate(cache, "vllm", "a/b@1", "n=8") is None


@pytest.mark.parametrize("old", [{f"vllm|m|{platform.node()}": {"requests_per_second": 1.0}}, ["nothing known"]])
def test_files_of_older_versions_are_passed_over(tmp_path: Path, old: Any) -> None:
    (tmp_path / "rates.json").write_text(json.dumps(old))
    assert known_rate(tmp_path, "vllm", "m", "n=1") is None
    remember_rate(tmp_path, "vllm", "m", "n=1", {"requests_per_second": 2.0})
    assert known_rate(tmp_path, "vllm", "m", "n=1") == {"requests_per_second": 2.0}


def test_a_cache_that_cannot_be_made_is_told() -> None:
    with pytest.raises(ArtifactError, match=r"cannot write /proc/nothing/"):
        remember_rate(Path("/proc/nothing"), "vllm", "m", "n=1", {"requests_per_second": 1.0})


def test_trials_add_up_and_are_an_engines_own(tmp_path: Path) -> None:
    assert known_trials(tmp_path, "vllm", "m") == {}
    remember_trial(tmp_path, "vllm", "m", "chunk=1", {"failure": "no memory"})
    remember_trial(tmp_path, "vllm", "m", "chunk=2", {"requests_per_second": 2.0})
    remember_trial(tmp_path, "vllm", "other", "chunk=1", {"requests_per_second": 3.0})
    assert known_trials(tmp_path, "vllm", "m") == {
        "chunk=1": {"failure": "no memory"},
        "chunk=2": {"requests_per_second": 2.0},
    }
    assert known_rate(tmp_path, "vllm", "m", "") is None
