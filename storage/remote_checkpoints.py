"""The checkpoints of a training stage on an object store, so that another machine goes on where one was lost.

Nothing else of unfinished work travels. Every file goes on its own and under its own name: a checkpoint never changes
and carries a digest, and its log may be longer than it says. Where a push was cut off, the trainer finds that the
newest checkpoint lacks something and goes on from the one before, which is deleted last.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
import uuid
from contextlib import ExitStack, suppress
from pathlib import Path

from paraclip.storage.locks import Lease
from paraclip.storage.object_store import RemoteFolder
from paraclip_core.errors import ArtifactError, LockedError

log = logging.getLogger(__name__)

CHECKPOINTS, LOG = "scratch/checkpoints", "out/training_log.jsonl"
PUSH_SECONDS = 300.0


class RemoteCheckpoints:
    """The checkpoints of one fingerprint, here and at the object store. Use it while holding lock and lease."""

    def __init__(self, remote: RemoteFolder, base: str, folder: Path, lease: Lease) -> None:
        """`base` is the folder of the unfinished work at the store, `folder` the one here."""
        self._remote, self._base, self._folder, self._lease = remote, base, folder, lease
        self._last = time.monotonic()
        self._thread: threading.Thread | None = None
        self._sent: set[str] = set()

    def fetch(self, incoming: Path) -> None:
        """Bring the checkpoints at the store here, by way of the folder `incoming`, if the newest one is not here."""
        there = [
            name for name in self._remote.sizes(self._base) if name == LOG or name.rpartition("/")[0] == CHECKPOINTS
        ]
        # By their names, which number the steps; the log's comes before them.
        if max(there, default=LOG) <= max(self._names(), default=LOG):
            return
        draft = incoming / uuid.uuid4().hex
        try:
            self._remote.download({self._object(name): draft / name for name in there})
            # The log first: an older checkpoint does with a longer one, and its absence has all fetched again.
            for name in (LOG, CHECKPOINTS):
                target = self._folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.is_dir():
                    shutil.rmtree(target)
                if (draft / name).exists():
                    (draft / name).replace(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._sent.update(self._names())
        log.info("goes on from the checkpoints that were pushed to %s", self._remote.name(self._base))

    def push_if_due(self) -> None:
        """Push in the background if it is time; call it as often as you like."""
        if self._lease.lost:
            raise LockedError(f"another machine has gone on with {self._base}; run again for what it makes")
        if time.monotonic() - self._last < PUSH_SECONDS or (self._thread and self._thread.is_alive()):
            return
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._push_quietly, name="push", daemon=True)
        self._thread.start()

    def finish(self, push: bool) -> None:
        """Wait for the background and, where the stage did not end well, push what it left."""
        if self._thread:
            self._thread.join()
        if push:
            self._push_quietly()

    def delete(self) -> None:
        """Delete them at the store, with all that lies there for this fingerprint."""
        self._remote.delete(self._object(name) for name in self._remote.sizes(self._base))

    def _push_quietly(self) -> None:
        try:
            names = self._names()
            if names and self._lease.holds():
                self._push(names)
        except (ArtifactError, OSError) as error:
            log.warning("the checkpoints are not pushed: %s", error)

    def _push(self, names: list[str]) -> None:
        with ExitStack() as stack:
            files = {}
            for name in names:
                # A newer one may take its place at any time, but not from who has it open.
                with suppress(FileNotFoundError):
                    files[name] = stack.enter_context((self._folder / name).open("rb"))
            # Read after the checkpoints were seen, so it has the lines that they count.
            self._remote.write(self._object(LOG), (self._folder / LOG).read_bytes())
            for name in files.keys() - self._sent:
                self._remote.upload_open(self._object(name), files[name])
                self._sent.add(name)
        kept = {LOG, *names}
        self._remote.delete(self._object(name) for name in self._remote.sizes(self._base) if name not in kept)

    def _names(self) -> list[str]:
        return sorted(f"{CHECKPOINTS}/{path.name}" for path in (self._folder / CHECKPOINTS).glob("*.safetensors"))

    def _object(self, name: str) -> str:
        return f"{self._base}/{name}"
