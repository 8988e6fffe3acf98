"""Which options are part of a fingerprint, and what is told of them."""

from __future__ import annotations

import json

import pytest

from paraclip_core.captions.columns import CAPTION, IMAGE, LICENSE, PATH, ColumnNames
from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError
from paraclip_core.options import meaning, unusual
from paraclip_core.settings import load_settings, parse_settings


def test_operational_options_are_left_out() -> None:
    some, same = ("run.threads=1", "paraphrase.chunk=2", "name=a"), ("run.threads=2", "paraphrase.chunk=3")
    here, there = (meaning(load_settings(None, options)) for options in (some, same))
    assert here == there == json.loads(json.dumps(here))
    assert here != meaning(load_settings(None, ["finetune.seed=1"]))


def test_the_unusual_options_make_the_same_settings() -> None:
    options = ["data.root=/a", "data.max_words=30", "finetune.weights.image_caption=1", "data.sources.0.path=a.csv"]
    settings = load_settings(None, [*options, "data.sources.0.license=MIT", "run.threads=3"])
    plain = unusual(settings)
    assert plain == {
        "data": {"sources": [{"path": "a.csv", "license": "MIT"}], "max_words": 30},
        "finetune": {"weights": {"image_caption": 1.0}},
    }
    assert meaning(parse_settings(plain)) == meaning(settings) and unusual(Settings()) == {}


OPERATIONAL_OPTIONS = {
    "Settings": "name run",
    "DataOptions": "root",
    "FeatureOptions": "batch_size",
    "ParaphraseOptions": "chunk",
    "FilterOptions": "device",
    "TransformersOptions": "batch_size",
    "VllmOptions": "python",
    "OpenAIOptions": "api_key_env base_url concurrency max_spend "
    "price_per_million_completion_tokens price_per_million_prompt_tokens requests_per_minute retries",
    "FinetuneOptions": "checkpoint_steps",
}


def test_every_other_option_has_a_meaning() -> None:
    """Without this list a mark too many would give out old artifacts for new options, and no test would see it."""
    schema = Settings.model_json_schema()
    groups = {**schema["$defs"], "Settings": schema}
    marked = {
        group: " ".join(sorted(name for name, field in part.get("properties", {}).items() if field.get("operational")))
        for group, part in groups.items()
        if group != "RunOptions"
    }
    assert {group: names for group, names in marked.items() if names} == OPERATIONAL_OPTIONS


@pytest.mark.parametrize("name", ["''", '" "', "..", "../x", "a/b", "a\\b", '"a\\nb"', ".hidden", "x" * 201, "ö" * 101])
def test_a_runs_name_stays_in_the_folder_of_results_and_fits_a_file(name: str) -> None:
    with pytest.raises(ConfigError, match="name a run"):
        load_settings(None, [f"name={name}"])
    for usual in ("flickr8k seed 2", "größer_v1.5", "x" * 200, "ö" * 100):
        assert load_settings(None, [f"name={usual}"]).name == usual


def test_a_form_calls_every_option_by_its_name_and_tells_the_usual_columns() -> None:
    schema = Settings.model_json_schema()
    for group in (schema, *schema["$defs"].values()):
        for name, option in group.get("properties", {}).items():
            assert option["title"] == name.replace("_", " ").title()
    for option, tried in {"caption": (CAPTION,), "image": (IMAGE, PATH), "license": (LICENSE,)}.items():
        description = " ".join((ColumnNames.model_fields[option].description or "").split())
        assert all(", ".join(names) in description for names in tried)
