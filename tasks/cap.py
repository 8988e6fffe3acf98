"""How far the spending cap of a paid engine reaches, as `plan` tells before a run."""

from __future__ import annotations

from paraclip_core.config import Settings
from paraclip_core.paraphrase.engines import make_engine
from paraclip_core.paraphrase.relevant import relevant
from storage.artifacts import ArtifactStore
from storage.spending import paid_tokens

__all__ = ["left_to_spend"]


def left_to_spend(settings: Settings, store: ArtifactStore) -> float | None:
    """What the cap leaves after all that this root has paid the model; None where there is no cap.

    Raises:
        ArtifactError: the generation cache cannot be read.
    """
    options = relevant(settings.paraphrase)
    if options.engine != "openai" or not options.openai.max_spend:
        return None
    engine = make_engine(options, settings.data.root)
    spent = options.openai.cost(*paid_tokens(store.cache, engine.name, engine.model))
    return options.openai.max_spend - spent
