"""What an earlier pass of step 1 made of captions, so that a plan need not judge their answers again."""

from __future__ import annotations

import json

from paraclip_core.config import Settings
from paraclip_core.paraphrase.choose import Verdict
from paraclip_core.paraphrase.relevant import relevant
from storage.artifacts import Artifact, ArtifactStore
from storage.parquet import iter_batches
from tasks.stage import software_versions
from tasks.stages.paraphrase import PARAPHRASE_1

__all__ = ["earlier_verdicts"]

MOST_ROWS = 300_000
"""Of an artifact; the verdicts are held in memory."""


def earlier_verdicts(settings: Settings, store: ArtifactStore) -> dict[str, Verdict]:
    """Caption → verdict, from the newest step 1 with the same meaning over other captions; empty without one.

    Where rejected captions are asked for again the last verdict does not say which requests there were, so none is
    given.
    """
    options = relevant(settings.paraphrase)
    if options.attempts > 1 or options.regenerate:
        return {}
    wanted = json.loads(json.dumps(PARAPHRASE_1.options(settings), default=list))
    alike = [artifact for artifact in store.list(PARAPHRASE_1.name) if _fits(artifact, wanted)]
    return _verdicts(alike[-1]) if alike else {}


def _fits(artifact: Artifact, options: object) -> bool:
    manifest = artifact.manifest
    return (
        manifest.stage_version == PARAPHRASE_1.version
        and manifest.options == options
        and manifest.versions == software_versions()
        and manifest.metrics.get("captions", MOST_ROWS) < MOST_ROWS
        and (artifact.path / "paraphrases").is_dir()
    )


def _verdicts(artifact: Artifact) -> dict[str, Verdict]:
    found: dict[str, Verdict] = {}
    for batch in iter_batches(artifact.path / "rejects", ("input", "reason", "detail", "answer")):
        for row in batch.to_pylist():
            found[row["input"]] = Verdict(row["answer"], row["reason"], row["detail"] or "")
    for batch in iter_batches(artifact.path / "paraphrases", ("caption", "paraphrase_1", "similarity_1")):
        for row in batch.to_pylist():
            found[row["caption"]] = Verdict(row["paraphrase_1"], similarity=row["similarity_1"])
    return found
