"""What a flow run is called."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from paraclip.flows import stages
from paraclip.flows.stages import run_name


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"settings": {"name": "clip-v1.2"}}, "pipeline-clip-v1.2"),
        ({"config": "configs/nightly.yaml"}, "pipeline-nightly"),
        ({"config": "configs/nightly.yaml", "overrides": ["finetune.seed=1", "name=b.2"]}, "pipeline-b.2"),
        ({}, "pipeline-paraclip"),
    ],
)
def test_a_flow_run_has_the_name_of_its_configuration(
    parameters: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "flow_run", SimpleNamespace(flow_name="pipeline", parameters=parameters))
    assert run_name() == name
