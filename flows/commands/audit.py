"""`paraclip audit`: how much the results of an image index depend on wording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paraclip.flows.commands.common import (
    DEFAULT_ROOT,
    DeviceOption,
    JsonOption,
    ModelOption,
    RootOption,
    print_json,
    print_table,
    say,
)
from paraclip.flows.commands.index_options import BaseOption, FeaturesOption, IdsOption, ImagesOption
from paraclip.storage.roots import open_store
from paraclip.tasks.audit import audit as measure
from paraclip.tasks.audit import write_page
from paraclip.tasks.image_index import search_target
from paraclip_core.evaluation.audit import Figure
from paraclip_core.evaluation.churn import Churn
from paraclip_core.evaluation.query_file import read_queries


def audit(
    model: ModelOption,
    queries: Annotated[
        Path | None,
        typer.Option(
            "--queries",
            "-q",
            exists=True,
            dir_okay=False,
            help="Text with one query per line, which rules reword; or a table with columns query, paraphrased_query. "
            "Default: captions of the index's images, or names of things that they show.",
        ),
    ] = None,
    base: BaseOption = None,
    features: FeaturesOption = None,
    ids: IdsOption = None,
    images: ImagesOption = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("audit.html"),
    device: DeviceOption = "cpu",
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Measure how much an image index depends on wording, without labels or training.

    A tuned model is measured together with its base, and what changes for the same queries is shown with matching
    thresholds; any other model is measured alone.
    """
    target = search_target(model, open_store(root), base, features, ids, images)
    texts, pairs = ([], None) if queries is None else read_queries(queries)
    result = measure(target, pairs or texts or None, device)
    names = {"base": "base", "tuned": "tuned"} if result.gain else {"base": "this model"}
    facts = {"base": target.base, "tuned": target.tuned} if result.gain else {"model": target.base}
    facts |= {"index": target.index.source, "queries": str(queries or "of the index itself")}
    write_page(out, result, target, names, facts)
    if as_json:
        print_json({**result.as_json(), "page": str(out)})
        return
    rows = [
        {"model": names[name], **{f"{metric}@{result.depth}": _shown(value) for metric, value in figures.items()}}
        for name, figures in result.figures.items()
    ]
    print_table("", list(rows[0]), rows)
    if result.kinds:
        changed = [
            {"changed": kind} | {names[name]: ao for name, ao in values.items()}
            for kind, values in result.kinds.items()
        ]
        print_table(f"AO@{result.depth} by what changed", list(changed[0]), changed)
    if result.gain:
        say("difference: " + ", ".join(f"{metric.upper()} {_shown(value)}" for metric, value in result.gain.items()))
    if result.churn is not None:
        _print_churn(result.churn)
    say(f"page: {out}")


def _print_churn(churn: Churn) -> None:
    say(churn.sentence)
    rows = [
        {
            "threshold of the base": f"{row.base:.4f}",
            "images per query": f"{row.images:.2f}",
            "tuned, threshold unchanged": f"{row.unchanged:.2f}",
            "threshold of the tuned model": f"{row.tuned:.4f}",
        }
        for row in churn.thresholds
    ]
    if rows:
        print_table("thresholds that let as many images pass", list(rows[0]), rows)


def _shown(value: Figure) -> str:
    return f"{value.mean:.1f}" + ("" if value.low is None else f" [{value.low:.1f}, {value.high:.1f}]")
