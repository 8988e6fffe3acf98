"""What a root may be, and what is said where a file system fails."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from paraclip.storage.object_store import RemoteFolder, is_url, open_remote
from paraclip.storage.roots import LOCAL_VARIABLE, open_store, working_folder
from paraclip_core.errors import ArtifactError, ConfigError


def test_folders_stay_folders(tmp_path: Path) -> None:
    for root in (tmp_path / "x", str(tmp_path / "x"), f"file://{tmp_path}/x"):
        store = open_store(root)
        assert (store.root, store.remote, store.location) == (tmp_path / "x", None, str(tmp_path / "x"))
    assert not any(map(is_url, ("runs", "/a/b", "file:///a"))) and all(map(is_url, ("s3://a/b", "memory://a")))


def test_each_url_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path))
    folders = {working_folder(url) for url in ("s3://a/b", "s3://a/b/", "s3://a-b", "gs://a/b", "s3://a/" + "b" * 300)}
    assert len(folders) == 4 and all(folder.parent == tmp_path for folder in folders)
    monkeypatch.delenv(LOCAL_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    if sys.platform != "darwin":
        assert working_folder("s3://a/b").parent == tmp_path / "caches" / "paraclip"


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("nonsense://bucket/x", "Protocol not known"),
        ("memory://", "names no bucket"),
        ("simplecache::s3://bucket/x", "plain URL"),
        ("ftp://someone:secret@host/x", "plain URL"),
        ("s3://[secret/x", "plain URL"),
    ],
)
def test_wrong_urls(url: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        open_remote(url)
    assert "secret" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    assert fsspec.available_protocols()
    # Another test of this process may have loaded it.
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ConfigError, match=r"pip install 'paraclip\[s3\]'"):
        open_remote("s3://bucket/x")


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [("read", ("a/b",)), ("sizes", ("a/b",)), ("write", ("a/b", b"")), ("delete", (["a/b"],))],
)
def test_an_error_names_the_object_and_no_secret(
    operation: str, arguments: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def __getattr__(self, name: str) -> Any:
            def fail(*_: Any, **__: Any) -> None:
                raise RuntimeError("hush-hush: https://host/bucket/a/b?X-Amz-Signature=abcdef failed")

            return fail

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    what = "list" if operation == "sizes" else operation
    with pytest.raises(ArtifactError, match=f"cannot {what} s3://bucket/a/b: RuntimeError") as caught:
        getattr(RemoteFolder(Failing(), "bucket", "s3://bucket"), operation)(*arguments)
    assert "hush" not in str(caught.value) and "Signature" not in str(caught.value)
    # A log with the traceback must not bring it back.
    assert caught.value.__suppress_context__


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_the_disks_fault(tmp_path: Path) -> None:
    remote = open_remote("memory://bucket-of-full-disk")
    remote.write("a", b"x" * 100_000)
    (tmp_path / "a").symlink_to("/dev/full")
    with pytest.raises(ArtifactError, match="No space left on device"):
        remote.download({"a": tmp_path / "a"})


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/x", "a//b", "a\\b", "a/./b"])
def test_a_path_stays_below_the_root(path: str) -> None:
    with pytest.raises(ArtifactError, match="cannot be the path"):
        open_remote("memory://bucket").write(path, b"")


def test_objects_are_named_by_their_path_below() -> None:
    remote = open_remote("memory://bucket-of-names/root")
    for name in ("a/b/c", "a/d", "ab/x", "odd/[1]*?.txt"):
        remote.write(name, name.encode())
    assert remote.sizes("a") == {"b/c": 5, "d": 3}
    assert (remote.sizes("none"), remote.read("none")) == ({}, None)
    assert remote.read_all(["a/d", "none"]) == {"a/d": b"a/d"}
    remote.delete(["odd/[1]*?.txt", "none"])
    assert remote.sizes("odd") == {}


def test_an_object_that_cannot_be_read_just_now_is_not_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    remote = open_remote("memory://bucket-of-refusals")
    for name in ("a", "b"):
        remote.write(name, b"x")
    read = MemoryFileSystem.cat_file

    def refuse(self: MemoryFileSystem, path: str, **options: Any) -> Any:
        if path.endswith("/b"):
            raise OSError("503 slow down")
        return read(self, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    with pytest.raises(ArtifactError, match=r"cannot read memory://bucket-of-refusals/b: OSError: 503"):
        remote.read_all(["a", "b", "none"])
    assert remote.read_all(["a", "none"]) == {"a": b"x"}
