"""Options of earlier releases: none is there, each is told apart from a typo, and advice names options of today."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from paraclip_core.errors import ConfigError
from paraclip_core.gone import GONE, GONE_VALUES
from paraclip_core.settings import PARAMETER, fields, load_settings

OPTIONS = {path for path, _ in fields()}
OLD = """
data: {sources: [{path: a.csv, licence: CC0, columns: {licence: terms}}]}
paraphrase: {engine: smollm2, filters: {preset: paper, nli: x}, mined: {min_cosine: 0.9}, vllm: {dtype: half}}
finetune: {negatives: {rows: 1}, l2_sp: 0.1}
evaluate: {benchmarks: [{name: order, kind: caption_order}]}
run: {retries: 3, trackers: [file], drift: {max_changed: 0.1}}
"""


def test_what_is_gone_is_gone_and_what_takes_its_place_is_there() -> None:
    assert not OPTIONS & GONE.keys() and GONE_VALUES.keys() - {"run.trackers.0"} <= OPTIONS
    advice = [*GONE.values(), *(text for values in GONE_VALUES.values() for text in values.values())]
    groups = "|".join(path for path in OPTIONS if "." not in path)
    named = {path for text in advice for path in re.findall(rf"\b(?:{groups})\.[a-z_]+(?:\.[a-z_]+)*", text)}
    assert "finetune.precision" in named and named <= OPTIONS


@pytest.mark.parametrize(
    ("path", "value"),
    [*((path, 1) for path in GONE), *((path, value) for path in GONE_VALUES for value in GONE_VALUES[path])],
)
def test_an_option_that_is_gone_is_no_typo(path: str, value: Any) -> None:
    needed = ["data.sources.0.path=x", "evaluate.benchmarks.0={name: x, kind: sts}"]
    with pytest.raises(ConfigError) as caught:
        load_settings(None, [*needed, f"{path}={value}"], given_by=PARAMETER)
    text = str(caught.value)
    assert text.startswith(f"overrides: {path}=") and "is gone since 0.1.0: " in text and "did you mean" not in text


def test_a_file_of_an_earlier_release_hears_of_everything_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(OLD)
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    text = str(caught.value)
    assert text.count("is gone since 0.1.0") == 13 and text.startswith(f"{path}: data.sources.0.")
    for part in ("write license", "'smollm2' is gone since 0.1.0: write openvino", "write run.drift.limit"):
        assert part in text, part
