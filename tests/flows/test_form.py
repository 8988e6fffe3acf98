"""The form of the Prefect UI: short for the eye, and whole for whoever checks parameters."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.utilities.schema_tools import validate

from paraclip.flows.form import FORM, form_schema
from paraclip.flows.pipeline import pipeline
from paraclip.flows.regenerate import regenerate
from paraclip.flows.stages import STAGE_FLOWS
from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError
from paraclip_core.settings import fields, parse_settings

REPOSITORY = Path(__file__).parents[2]


def options(schema: dict[str, Any], shown: bool, prefix: str = "") -> Iterator[str]:
    """Dotted paths of a schema's options, those that a form shows or all."""
    if "items" in schema:
        yield from options(schema["items"], shown, f"{prefix}0.")
    arms = [arm for arm in schema.get("anyOf", ()) if "properties" in arm]
    for node in (schema, *arms):
        patterns = {} if shown else node.get("patternProperties", {})
        hidden = {name.strip("^$"): option for name, option in patterns.items()}
        for name, option in {**node.get("properties", {}), **hidden}.items():
            yield f"{prefix}{name}"
            yield from options(option, shown, f"{prefix}{name}.")


def test_the_form_shows_what_is_listed_and_hides_nothing_from_the_check() -> None:
    paths = {path for path, _ in fields()}
    assert set(FORM) <= paths
    schema = form_schema()
    shown = set(options(schema, shown=True))
    leaves = {path for path in shown if not any(other.startswith(f"{path}.") for other in shown)}
    assert leaves == set(FORM) and len(FORM) <= 8
    # What decides data, license and promotion is shown.
    assert {"data.root", "data.sources.0.path", "data.sources.0.license", "run.promote"} <= leaves
    assert set(options(schema, shown=False)) == paths
    assert "$ref" not in str(schema)
    places = [option["position"] for option in schema["properties"].values()]
    assert places == list(range(4)) and next(iter(schema["properties"])) == "name"


@pytest.mark.parametrize("flow", [pipeline, regenerate, STAGE_FLOWS["ingest"]])
def test_parameters_are_checked_before_a_run_is_made(flow: Any) -> None:
    # As the server does it.
    check = partial(validate, schema=flow.parameters.model_dump(), raise_on_error=True, ignore_required=True)
    demo = yaml.safe_load((REPOSITORY / "configs" / "demo.yaml").read_text())
    whole = Settings().model_dump(mode="json")
    for settings in ({}, demo, whole, {"features": {"batch_size": 8}, "finetune": {"validation": 0.2}}):
        parse_settings(settings)
        check({"settings": settings, "overrides": ["finetune.epochs=3", "name = x"]})
    for settings, problem in (
        ({"finetune": {"validation": 2}}, "2"),
        ({"finetune": {"validatoin": 0.2}}, "validatoin"),
        ({"featurse": {}}, "featurse"),
        ({"finetune": {"alpha": {"grid": "much"}}}, "much"),
    ):
        with pytest.raises(Exception, match=problem):
            check({"settings": settings})
    with pytest.raises(Exception, match=r"finetune\.epochs: 3"):
        check({"overrides": ["finetune.epochs: 3"]})


def test_a_wrong_option_of_a_run_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"^the parameter settings: .* did you mean finetune\.epochs\?"):
        pipeline.validate_parameters({"settings": {"finetune": {"epoks": 3}}})
