"""Every stage of a run, one row each. A new stage is one file and one row, or a dotted path in `run.stages`."""

from __future__ import annotations

from collections.abc import Mapping

from paraclip.tasks.stage import Stage
from paraclip.tasks.stages.evaluate import EVALUATE
from paraclip.tasks.stages.features import FEATURES
from paraclip.tasks.stages.ingest import INGEST
from paraclip.tasks.stages.paraphrase import PARAPHRASE_1, PARAPHRASE_2
from paraclip.tasks.stages.report import REPORT
from paraclip.tasks.stages.scenes import SCENES
from paraclip.tasks.stages.training import BOOTSTRAP, CONTROL, FINETUNE
from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError
from paraclip_core.plugins import import_path

STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        SCENES, INGEST, PARAPHRASE_1, PARAPHRASE_2, FEATURES, BOOTSTRAP, FINETUNE, CONTROL, EVALUATE, REPORT
    )
}  # fmt: skip
"""The built-in stages, in an order in which inputs come first."""


def stages_of(settings: Settings) -> dict[str, Stage]:
    """The stages of a run with these settings, in order: built-in ones that apply, then the user's own.

    A stage of the user's own that has a built-in one's name takes its place.
    """
    stages = dict(STAGES)
    for path in settings.run.stages:
        stage = import_path(path, f"run.stages: {path}", "a paraclip.tasks.stage.Stage")
        if not isinstance(stage, Stage):
            raise ConfigError(f"run.stages: {path} is a {type(stage).__name__}; expected a paraclip.tasks.stage.Stage")
        stages[stage.name] = stage
    return _inputs_first({name: stage for name, stage in stages.items() if stage.applies(settings)}, settings)


def _inputs_first(stages: Mapping[str, Stage], settings: Settings) -> dict[str, Stage]:
    """The stages in their order, but none before one that it reads, as an engine may want of the features."""
    ordered: dict[str, Stage] = {}

    def add(name: str) -> None:
        if name in stages and name not in ordered:
            for upstream in stages[name].inputs(settings):
                add(upstream)
            ordered[name] = stages[name]

    for name in stages:
        add(name)
    return ordered
