"""Stage ``report``: one self-contained HTML page about the whole run."""

from __future__ import annotations

from typing import Any

from paraclip_core.config import Settings
from storage.files import write_atomic
from tasks.models import base_inputs
from tasks.stage import Stage, StageContext
from tasks.stages.report_inputs import gather

__all__ = ["REPORT"]

FILE = "report.html"


def _inputs(settings: Settings) -> tuple[str, ...]:
    scenes = ("scenes",) if settings.data.scenes is not None else ()
    steps = ("ingest", "paraphrase_1", "paraphrase_2", "features", *base_inputs(settings), "finetune", "evaluate")
    return (*scenes, *steps)


def _options(settings: Settings) -> dict[str, Any]:
    # The name changes nothing but this page, so only here it has a meaning.
    return {"name": settings.name}


def _body(ctx: StageContext) -> dict[str, Any]:
    # Here, because a plan needs none of it.
    from paraclip_core.report.page import render_report

    data = gather(ctx.settings, ctx.inputs)
    page = render_report(data).encode("utf-8", "replace")
    write_atomic(ctx.work.out / FILE, lambda file: file.write(page))
    return {"bytes": len(page), "verdict": data.verdict, "thumbnails": len(data.thumbnails)}


REPORT = Stage(name="report", version=7, inputs=_inputs, options=_options, body=_body)
