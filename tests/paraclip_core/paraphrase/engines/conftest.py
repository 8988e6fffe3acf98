"""Fixtures of the engines' tests."""

from __future__ import annotations

from typing import Any

import pytest

from paraclip_core.paraphrase.engines import EngineContext, EngineOptions
from paraclip_core.paraphrase.engines.openai import OpenAIEngine, OpenAIOptions
from tests.kit.openai_asking import VARIABLE
from tests.kit.openai_server import Handler, OpenAIServer


@pytest.fixture
def connect(openai_server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Engines on the server, quick to try again, closed at the end."""
    monkeypatch.delenv(VARIABLE, raising=False)
    for name in ("INITIAL_RETRY_DELAY", "MAX_RETRY_DELAY"):
        monkeypatch.setattr(f"openai._base_client.{name}", 0.01)
    # Otherwise each body waits 40 ms until its headers are acknowledged.
    monkeypatch.setattr(Handler, "disable_nagle_algorithm", True)
    engines: list[OpenAIEngine] = []

    def engine(model: str = "smol", **options: Any) -> OpenAIEngine:
        quick = {"base_url": openai_server.url, "retries": 3}
        chosen = OpenAIOptions(**(quick | options))
        engines.append(OpenAIEngine(EngineOptions(chosen, model), EngineContext()))
        return engines[-1]

    yield engine
    for each in engines:
        each.close()
