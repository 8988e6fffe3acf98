"""A root on an object store: what one machine finished is the others', and damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paraclip.storage.artifacts import Draft
from paraclip_core.errors import ArtifactError
from tests.kit.machines import FP, Machine, Objects, contents, make, refuse


def test_another_machine_finds_what_one_has_made(machine: Machine, objects: Objects) -> None:
    artifact = make(machine("one"))
    assert artifact.path.is_dir()
    base = f"artifacts/ingest/{FP}"
    assert objects.names() == [f"{base}/a.txt", f"{base}/manifest.json", f"{base}/sub/b.bin"]
    other = machine("two")
    peeked = other.peek("ingest", FP)
    assert peeked is not None and peeked.manifest == artifact.manifest and not peeked.path.exists()
    downloaded = other.find("ingest", FP)
    assert downloaded is not None and downloaded.path != artifact.path and contents(downloaded) == contents(artifact)
    assert other.verify(downloaded) == []
    # One that is here is used without the store, and one that is removed is gone everywhere.
    other.remove(downloaded)
    assert objects.names() == [] and other.list() == []
    assert machine("one").find("ingest", FP) == artifact and machine("two").find("ingest", FP) is None


def test_listing_needs_no_download(machine: Machine, url: str) -> None:
    make(machine("one"))
    make(machine("two"), "f" * 32)
    third = machine("three")
    assert [artifact.fingerprint for artifact in third.list()] == [FP, "f" * 32]
    assert third.list("features") == []
    artifact = third.resolve("ingest/0123")
    assert not artifact.path.exists()
    assert third.uri(artifact) == f"{url}/artifacts/ingest/{FP}"
    assert third.download(artifact).path.is_dir()
    assert third.uri(artifact) == str(artifact.path)


def test_an_upload_that_fails_is_made_up_for(
    machine: Machine, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machine("one")
    with monkeypatch.context() as patched:
        patched.setattr(store.remote, "upload", refuse)
        with pytest.raises(ArtifactError, match="network is down"):
            make(store)
    assert f"artifacts/ingest/{FP}/manifest.json" not in objects.names()
    assert machine("two").find("ingest", FP) is None
    again = machine("one").find("ingest", FP)
    assert again is not None
    assert contents(make(machine("two"))) == contents(again)
    assert objects.names("work") == [] and objects.names("locks") == []


def test_the_first_to_finish_counts(machine: Machine) -> None:
    """Two machines that could not see each other's locks made different things of the same fingerprint."""
    one = machine("one")
    with one.writing("ingest", FP) as work:
        (work.out / "a.txt").write_bytes(b"mine")
        alone = machine("two")
        base = f"locks/ingest/{FP}"
        alone.remote.delete(f"{base}/{name}" for name in alone.remote.sizes(base))
        make(alone)
        committed = one.commit(Draft("ingest", FP, 1, {}, {}), {}, 1.0)
    assert (committed.path / "a.txt").read_bytes() == b"alpha"
    assert committed.manifest.metrics == {"rows": 3}
    assert one.verify(committed) == []


@pytest.mark.parametrize("entry", ["find", "peek"])
def test_a_lost_object_is_named(machine: Machine, objects: Objects, url: str, entry: str) -> None:
    make(machine("one"))
    objects.delete(f"artifacts/ingest/{FP}/sub/b.bin")
    with pytest.raises(ArtifactError, match=rf"{url}/artifacts/ingest/{FP}/sub/b.bin is missing.*Delete all that lies"):
        getattr(machine("two"), entry)("ingest", FP)


def test_a_changed_object_never_becomes_an_artifact_and_verify_reads_it(machine: Machine, objects: Objects) -> None:
    artifact = make(machine("one"))
    objects.write(f"artifacts/ingest/{FP}/a.txt", b"omega")
    (problem,) = machine("one").verify(artifact)
    assert "a.txt was changed" in problem and machine("two").verify(artifact) == [problem]
    store = machine("two")
    with pytest.raises(ArtifactError, match=r"a\.txt was changed"):
        store.find("ingest", FP)
    assert not store.path("ingest", FP).exists()
    assert list((store.root / "incoming").glob("*")) == []
    # Deleted as the message says, it is made again.
    for name in objects.names(f"artifacts/ingest/{FP}"):
        objects.delete(name)
    assert contents(make(store))["a.txt"] == contents(artifact)["a.txt"]


@pytest.mark.parametrize("data", [b"{", b'{"schema_version": 1}'])
def test_a_damaged_manifest_is_named(machine: Machine, objects: Objects, data: bytes, url: str) -> None:
    make(machine("one"))
    objects.write(f"artifacts/ingest/{FP}/manifest.json", data)
    store = machine("two")
    with pytest.raises(ArtifactError, match=f"{url}/artifacts/ingest/{FP}/manifest.json"):
        store.find("ingest", FP)
    assert (store.list(), [entry[:2] for entry in store.unreadable()]) == ([], [("ingest", FP)])


def test_a_manifest_cannot_write_elsewhere(machine: Machine, objects: Objects, tmp_path: Path) -> None:
    make(machine("one"))
    name = f"artifacts/ingest/{FP}/manifest.json"
    manifest = json.loads(objects.read(name))
    manifest["files"]["../../../../evil"] = manifest["files"].pop("a.txt")
    objects.write(name, json.dumps(manifest).encode())
    with pytest.raises(ArtifactError, match="cannot be the path of a file"):
        machine("two").find("ingest", FP)
    assert list(tmp_path.rglob("evil")) == []
