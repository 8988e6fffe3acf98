"""`paraclip search`: the images that base and tuned find for a query."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from paraclip.flows.commands.common import (
    ConfigOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    RunRootOption,
    SetOption,
    print_json,
    print_table,
    say,
    settings_from,
)
from paraclip.flows.commands.index_options import BaseOption, FeaturesOption, IdsOption
from paraclip.storage.roots import open_store
from paraclip.tasks.expansion import paraphrase_queries
from paraclip.tasks.image_index import search as nearest_images
from paraclip.tasks.image_index import search_target
from paraclip.tasks.run.run import Run
from paraclip.tasks.run.status import shown_progress
from paraclip_core.config import MOST_PARAPHRASES
from paraclip_core.errors import ConfigError
from paraclip_core.text_safety import printable


def search(
    query: Annotated[str, typer.Argument(help="What to look for, in words.")],
    model: ModelOption,
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="How many images.")] = 10,
    base: BaseOption = None,
    features: FeaturesOption = None,
    ids: IdsOption = None,
    paraphrases: Annotated[
        int,
        typer.Option(
            min=0,
            max=MOST_PARAPHRASES,
            help="Ask for paraphrases of the query, by the engine of --config, and rank by the tuned model's mean with "
            "them, too.",
        ),
    ] = 0,
    config: ConfigOption = None,
    set_: SetOption = None,
    device: DeviceOption = "cpu",
    root: RunRootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank a run's images, or an index of your own, for a query: the base model's order next to the tuned one's."""
    if not query.strip():
        raise ConfigError("the query is empty; say in words what to look for")
    settings = settings_from(config, set_, root)
    target = search_target(model, open_store(settings.run.root), base, features, ids)
    expansion = None
    if paraphrases:
        with shown_progress("expand", lambda line: typer.echo(printable(line), err=True)) as progress:
            expansion = paraphrase_queries(Run(settings), [query], paraphrases, progress)
    hits = nearest_images(target, query, count, device, None if expansion is None else expansion.paraphrases[0])
    facts = {} if expansion is None else {"paraphrases": expansion.paraphrases[0], "expansion": expansion.facts()}
    if as_json:
        print_json(
            {"query": query, **{name: [asdict(hit) for hit in ranked] for name, ranked in hits.items()}, **facts}
        )
        return
    rows: list[dict[str, Any]] = [{"rank": hit.rank} for hit in hits["base"]]
    if target.base == target.tuned:
        # An index of your own, searched by the model that made it.
        del hits["tuned"]
    for number, (name, ranked) in enumerate(hits.items(), 1):
        for row, hit in zip(rows, ranked, strict=True):
            # Columns of scores have no title.
            row |= {name: ": ".join(filter(None, (hit.image_id, hit.caption))), " " * number: hit.score}
    print_table("", list(rows[0]) if rows else ["rank", *hits], rows)
    if expansion is not None:
        say(f"expanded by: {'; '.join(expansion.paraphrases[0]) or 'nothing, as no paraphrase was accepted'}")
        spent = expansion.facts()
        cost = "" if spent["spend"] is None else f", which cost {spent['spend']:.4g}"
        say(f"{spent['asked']} requests asked{cost}, {spent['cached']} cached")
