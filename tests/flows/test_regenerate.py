"""What starts the nightly run besides its clock: new captions, seen by `watch` on a real server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paraclip_core.config import Settings
from paraclip_core.settings import parse_settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    from prefect_server import prefect_server  # pyright: ignore[reportMissingImports]

    with prefect_server():
        yield


class Nightly:
    """A deployment of `regenerate` that no worker carries out."""

    def __init__(self, settings: Settings) -> None:
        from prefect import get_client

        from paraclip.flows.regenerate import regenerate

        with get_client(sync_client=True) as client:
            parameters = {"settings": settings.model_dump(mode="json")}
            self.id = client.create_deployment(client.create_flow(regenerate), "regenerate", parameters=parameters)

    def watch(self) -> str:
        """What `watch` says."""
        from paraclip.flows.regenerate import watch

        return watch(settle_seconds=0.1, return_state=True).message or ""

    def runs(self) -> list[Any]:
        from prefect import get_client
        from prefect.client.schemas.filters import DeploymentFilter

        with get_client(sync_client=True) as client:
            only = DeploymentFilter.model_validate({"id": {"any_": [self.id]}})
            return client.read_flow_runs(deployment_filter=only)

    def end(self) -> None:
        """Let every run fail."""
        from prefect import get_client
        from prefect.states import Failed

        with get_client(sync_client=True) as client:
            for run in self.runs():
                client.set_flow_run_state(run.id, Failed(), force=True)


def test_new_captions_start_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARACLIP_ROOT", raising=False)
    captions = tmp_path / "captions.csv"
    captions.write_text("image,caption\na.png,a red ball\n")
    plain = {"name": "nightly", "data": {"root": str(tmp_path), "sources": [{"path": "captions.csv"}]}}
    nightly = Nightly(parse_settings(plain | {"run": {"root": str(tmp_path / "root")}}))

    # A file that grows is left alone until it is still.
    def grow(_: float) -> None:
        with captions.open("a") as file:
            file.write("b.png,a blue car\n")

    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", grow)
        assert "still being written" in nightly.watch() and not nightly.runs()
    captions.write_text("image,caption\na.png,a red ball\nb.png,a blue car\n")
    assert "new captions: started " in nightly.watch()
    (first,) = nightly.runs()
    assert f"{first.name} is under way" in nightly.watch() and len(nightly.runs()) == 1
    # One that failed is for a person to retry: every ten minutes would be too often.
    nightly.end()
    assert "was started for these captions before" in nightly.watch() and len(nightly.runs()) == 1
    captions.write_text("image,caption\na.png,a red ball\nb.png,a blue car\nc.png,a green tree\n")
    assert "new captions: started " in nightly.watch() and len(nightly.runs()) == 2
    nightly.end()
    captions.unlink()
    from paraclip.flows.regenerate import watch

    state = watch(settle_seconds=0.1, return_state=True)
    assert state.is_failed() and "captions.csv" in (state.message or "")


def test_captions_with_a_model_start_nothing(finished_run: Callable[..., Any]) -> None:
    nightly = Nightly(finished_run("name=nightly").settings)
    before = {run.id for run in nightly.runs()}
    assert nightly.watch() == "no new captions" and {run.id for run in nightly.runs()} == before
