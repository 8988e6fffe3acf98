"""The stage that renders the demo's data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from paraclip.storage.files import storage_error
from paraclip.tasks.run.run import Stage, StageContext
from paraclip_core.config import meaning
from paraclip_core.errors import ConfigError

if TYPE_CHECKING:
    from paraclip.tasks.run.run import Run


def _options(run: Run) -> Mapping[str, Any]:
    return meaning(run.settings.data.scenes) if run.settings.data.scenes else {}


def _body(ctx: StageContext) -> dict[str, Any]:
    """Render everything; it takes well under a minute, so a try that was cut off starts again."""
    # Here, because drawing takes a quarter of a second to import and finding the artifact needs none of it.
    from paraclip_core.demo.render import write_scenes

    options = ctx.settings.data.scenes
    if options is None:
        raise ConfigError("the stage `scenes` needs `data.scenes`; set it, for example to {images: 3000}")
    try:
        return dict(write_scenes(options, ctx.work.out, ctx.progress))
    except OSError as error:
        raise storage_error(error, ctx.work.out) from error


SCENES = Stage(
    name="scenes",
    version=1,
    inputs=lambda settings: (),
    options=_options,
    body=_body,
    applies=lambda settings: settings.data.scenes is not None,
    about="Render the demo's images with captions and held-out rewordings.",
    units=("images",),
)
