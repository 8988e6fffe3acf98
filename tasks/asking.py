"""Runs that would ask the same model the same things wait for each other, so that the later one finds the answers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial

from paraclip_core.config import ParaphraseOptions
from paraclip_core.paraphrase.shards import first_requests
from paraclip_core.progress import Progress
from storage.artifacts import Artifact, ArtifactStore
from storage.locks import lock

__all__ = ["one_asking"]

WAITING = "for another run that asks the same"


def one_asking(
    store: ArtifactStore,
    options: ParaphraseOptions,
    step: int,
    model: str,
    upstream: Artifact,
    progress: Progress,
    part: str = "all",
) -> AbstractContextManager[None]:
    """What one run at a time may hold, of those that ask `model` about the same captions over one cache folder.

    Runs that differ in gates, attempts or their share of the captions have other fingerprints and the same requests.
    Side by side, each would find them missing in the cache, and both would pay.

    Args:
        store: whose cache is asked first. Of machines that share an object store each has a cache folder of its own.
        options: those that matter to the step.
        step: 1 or 2.
        model: id and revision.
        upstream: what the step reads.
        progress: told while another run is waited for.
        part: which of the requests, where several processes share them out.
    """
    if options.engine == "file":
        return nullcontext()
    captions = upstream.fingerprint if step == 1 else upstream.manifest.inputs["ingest"]
    (name,) = first_requests(options, step, model).keys([f"{captions} {part}"]).to_pylist()
    return lock(store.cache / "asking" / f"{name.hex()}.lock", poll=partial(progress, 0, None, waiting=WAITING))
