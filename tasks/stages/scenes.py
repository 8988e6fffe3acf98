"""The demo's images, rendered with captions and held-out paraphrased queries."""

from __future__ import annotations

from typing import Any

from paraclip.tasks.run.run import Stage, StageContext
from paraclip_core.options import meaning


def _render_scenes(ctx: StageContext) -> dict[str, Any]:
    """Render everything; it takes well under a minute, so an interrupted attempt starts over."""
    # Imported here: drawing takes a quarter of a second to import, and finding the artifact does not need it.
    from paraclip_core.demo.render import write_scenes

    options = ctx.settings.data.scenes
    assert options is not None
    return dict(write_scenes(options, ctx.work.out, ctx.progress))


SCENES = Stage(
    name="scenes",
    version=2,
    inputs=lambda settings: (),
    options=lambda run: meaning(run.settings.data.scenes) if run.settings.data.scenes else {},
    body=_render_scenes,
    applies=lambda settings: settings.data.scenes is not None,
    about="Render the demo's images with captions and held-out paraphrased queries.",
    units=("images",),
)
