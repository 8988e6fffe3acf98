"""Every move of a channel is kept, it can go back, and who may move which."""

from __future__ import annotations

import getpass
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.runtime import flow_run

from paraclip.storage.artifacts import ArtifactStore
from paraclip.storage.roots import LOCAL_VARIABLE, open_store
from paraclip.tasks.channels import (
    BY_PROMOTION,
    BY_ROLLBACK,
    BY_RUN,
    MOVES,
    check_channel,
    check_run_name,
    history,
    models,
    moved,
    rollback,
    withdrawn,
)
from paraclip_core.errors import ArtifactError, ConfigError, UnknownNameError
from tests.tasks.builders import committed

A, B, C, D, E = (letter * 32 for letter in "abcde")


@pytest.fixture(params=["folder", "object store"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    if request.param == "folder":
        return ArtifactStore(tmp_path)
    monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path))
    return open_store(f"memory://{tmp_path.name}-history/root")


def model(store: ArtifactStore, fingerprint: str) -> dict[str, str]:
    """A run whose model has this fingerprint; the fingerprints of its stages."""
    ingest, evaluation = "1" + fingerprint[1:], "2" + fingerprint[1:]
    stages = {"ingest": ingest, "finetune": fingerprint, "evaluate": evaluation}
    inputs = ({"source:captions.csv": "f" * 64}, {"ingest": ingest}, {"finetune": fingerprint})
    for (stage, name), read in zip(stages.items(), inputs, strict=True):
        if not store.find(stage, name):
            committed(store, stage, name, read)
    return stages


def promote(store: ArtifactStore, *fingerprints: str, by: str = BY_PROMOTION) -> None:
    for fingerprint in fingerprints:
        value = moved(store.channel("production"), model(store, fingerprint), "promote", by, f"for {fingerprint[0]}")
        store.set_channel("production", value)


def channel(store: ArtifactStore) -> dict[str, Any]:
    return store.channel("production") or {}


def served(store: ArtifactStore) -> Any:
    return channel(store)["fingerprint"]


def test_every_move_tells_who_when_and_why(store: ArtifactStore) -> None:
    promote(store, A, B)
    promote(store, B)  # serves it already
    first, second = history(channel(store))
    assert (first.before, first.after, second.before, second.after) == (None, A, A, B)
    assert (second.by, second.verdict, second.reason) == ("promotion", "promote", "for b")
    assert second.who == f"{getpass.getuser()}@{socket.gethostname()}" and second.flow_run is None
    assert second.at is not None and second.stages["evaluate"] == "2" + B[1:]
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(second.at) < timedelta(minutes=5)
    assert channel(store)["before"] == A and channel(store)["reason"] == "for b"


def test_a_run_that_only_measures_more_has_its_latest_verdict_with_its_reason() -> None:
    first = moved(None, {"finetune": A}, "promote", BY_RUN, "it gained", "shop")
    again = moved(first, {"finetune": A}, "hold", BY_RUN, "STS fell", "shop")
    (move,) = history(again)
    assert (again["verdict"], again["reason"], move.verdict, move.reason) == ("hold", "STS fell", "hold", "STS fell")


def test_a_history_has_a_bound() -> None:
    value: dict[str, Any] = {}
    for number in range(MOVES + 5):
        value = moved(value, {"finetune": f"{number:032}"}, "promote", BY_PROMOTION)
    assert len(history(value)) == MOVES and history(value)[-1].after == value["fingerprint"]
    assert len(models(value)) == MOVES


def test_a_rollback_goes_to_the_model_before_and_is_a_move(store: ArtifactStore) -> None:
    promote(store, A, B, C)
    decision = rollback(store, "production")
    reason = f"rolled back from {C} to {B}"
    assert decision == {"channel": "production", "moved": True, "reason": reason, "before": C, "after": B}
    value = channel(store)
    last = history(value)[-1]
    assert (last.by, last.before, last.after, last.reason) == (BY_ROLLBACK, C, B, decision["reason"])
    assert value["stages"] == model(store, B) and value["verdict"] == "promote"
    assert value["moved_by"] == BY_PROMOTION, "it still belongs to promotions"
    assert store.named("production").fingerprint == B
    # Once more goes further back, not forth.
    assert rollback(store, "production")["after"] == A
    with pytest.raises(ArtifactError, match=f"has served no model before {A}; .*promote --force"):
        rollback(store, "production")
    promote(store, D)
    assert rollback(store, "production")["after"] == A
    # A model that is gone is refused.
    promote(store, B, C)
    store.remove(store.resolve(f"finetune/{B}"))
    before = channel(store)
    with pytest.raises(ArtifactError, match=f"the model {B} is gone from .*, so 'production' stays as it is"):
        rollback(store, "production")
    assert channel(store) == before


def test_a_rollback_to_a_model_by_name(store: ArtifactStore) -> None:
    promote(store, A, B, C)
    assert rollback(store, "production", A[:6])["after"] == A
    assert withdrawn(channel(store), C) and not withdrawn(channel(store), A)
    # Forth again, which takes back that it was left.
    assert rollback(store, "production", f"finetune/{C[:6]}")["after"] == C
    assert withdrawn(channel(store), C) is None
    decision = rollback(store, "production", C)
    assert (
        not decision["moved"]
        and decision["reason"] == f"kept: it serves {C} already"
        and len(history(channel(store))) == 5
    )
    # A model that it never served moves by hand alone.
    model(store, E)
    for name in ("eee", "ingest/1a"):
        with pytest.raises(UnknownNameError, match=r"matches 0 models .*promote --force"):
            rollback(store, "production", name)
    with pytest.raises(UnknownNameError, match=r"no channel .* is named 'prodution'; there are production"):
        rollback(store, "prodution")
    assert served(store) == C


def test_a_retried_flow_run_goes_back_once(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(store, A, B, C)
    with monkeypatch.context() as patch:
        patch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", "of tonight")
        assert flow_run.id == "of tonight"
        assert [rollback(store, "production")["after"] for _ in range(2)] == [B, B]
    assert history(channel(store))[-1].flow_run == "of tonight" and served(store) == B
    assert rollback(store, "production")["after"] == A


def test_a_channel_that_runs_move_cannot_be_the_promoted_one(store: ArtifactStore) -> None:
    check_channel("nightly", "production", store)
    with pytest.raises(ConfigError, match="both named 'production'"):
        check_channel("production", "production", store)
    with pytest.raises(ArtifactError, match="cannot be a channel's name"):
        check_channel("nightly", "../production", store)
    store.set_channel("production", moved(None, {"finetune": "aaa"}, "hold", BY_RUN))
    with pytest.raises(ConfigError, match=r"delete production\.json"):
        check_channel("nightly", "production", store)
    store.set_channel("production", moved(None, {"finetune": "aaa"}, "promote", BY_PROMOTION))
    with pytest.raises(ConfigError, match=r"give the run another name, or name another channel$"):
        check_channel("production", "production", store)
    # Nor can a run take the name of a promoted one.
    with pytest.raises(ConfigError, match="only a promotion moves"):
        check_run_name("production", store)
    store.set_channel("demo", moved(None, {"finetune": "aaa"}, "hold", BY_RUN))
    for name in ("demo", "new"):
        check_run_name(name, store)
