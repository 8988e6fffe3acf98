"""`paraclip search`, `ui`, `audit` and `verify-index`: commands for an existing image index."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paraclip.flows.commands.common import (
    DEFAULT_ROOT,
    MODEL,
    ConfigOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    RootOption,
    RunRootOption,
    SetOption,
    print_facts,
    print_json,
    print_table,
    say,
    settings_from,
)
from paraclip.storage.roots import open_store
from paraclip_core.config import MOST_PARAPHRASES
from paraclip_core.errors import ConfigError
from paraclip_core.text_safety import printable

if TYPE_CHECKING:
    from paraclip.tasks.expansion import Expansion
    from paraclip_core.config import Settings
    from paraclip_core.evaluation.audit import Figure
    from paraclip_core.evaluation.churn import Churn

INVALID = 1
LOCAL = ("127.0.0.1", "localhost", "::1")

BaseOption = Annotated[
    str | None, typer.Option(help="The model before tuning; default: the one that a run's model records.")
]
FeaturesOption = Annotated[
    Path | None,
    typer.Option(
        help="An index of your own: .npy [n, d], Parquet with a vector column, or a folder of shards as clip-retrieval "
        "writes them; default: the images of the model's run."
    ),
]
IdsOption = Annotated[
    Path | None, typer.Option(help="Ids of its rows: text (one per line), a JSON list, or a Parquet column.")
]
ImagesOption = Annotated[
    Path | None, typer.Option(exists=True, help="Folder, tar or Parquet with the images, whose names are the ids.")
]


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
    from paraclip.tasks.image_index import search as nearest_images
    from paraclip.tasks.image_index import search_target

    if not query.strip():
        raise ConfigError("the query is empty; say in words what to look for")
    settings = settings_from(config, set_, root)
    target = search_target(model, open_store(settings.run.root), base, features, ids)
    expansion = _expansion(settings, query, paraphrases) if paraphrases else None
    hits = nearest_images(target, query, count, device, None if expansion is None else expansion.paraphrases[0])
    facts = {} if expansion is None else {"paraphrases": expansion.paraphrases[0], "expansion": expansion.facts()}
    if as_json:
        print_json({"query": query, **{name: [asdict(hit) for hit in each] for name, each in hits.items()}, **facts})
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


def _expansion(settings: Settings, query: str, paraphrases: int) -> Expansion:
    from paraclip.tasks.expansion import paraphrase_queries
    from paraclip.tasks.run.run import Run
    from paraclip.tasks.run.status import shown_progress

    with shown_progress("expand", lambda line: typer.echo(printable(line), err=True)) as progress:
        return paraphrase_queries(Run(settings), [query], paraphrases, progress)


def verify_index(
    base: Annotated[str, typer.Option(help=MODEL)],
    tuned: Annotated[str, typer.Option(help=MODEL)],
    images: Annotated[
        Path | None,
        typer.Option(exists=True, help="Folder, tar or Parquet; some of its images are encoded with both models."),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            exists=True, help="An index of these images; without ids, its rows are in the order of their names."
        ),
    ] = None,
    ids: IdsOption = None,
    sample: Annotated[int, typer.Option(min=1, help="How many images to encode.")] = 16,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Prove that image embeddings made with the base stay valid for the tuned model; exit code 1 if they do not."""
    from paraclip.tasks.models import find_release
    from paraclip_core.clip.verify_index import verify_index as verify

    store = open_store(root)
    models = {"base": str(find_release(base, store)), "tuned": str(find_release(tuned, store))}
    checks = verify(**models, images=images, features=features, sample=sample, ids=ids)
    valid = all(check.valid for check in checks)
    print_facts({**models, "valid": valid, "checks": [asdict(check) for check in checks]}, as_json)
    if not valid:
        raise typer.Exit(INVALID)


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
    from paraclip.tasks.audit import audit as measure
    from paraclip.tasks.audit import write_page
    from paraclip.tasks.image_index import search_target
    from paraclip_core.evaluation.query_file import read_queries

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


def ui(
    model: ModelOption,
    base: BaseOption = None,
    features: FeaturesOption = None,
    ids: IdsOption = None,
    images: ImagesOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on; beyond this machine a token is needed.")] = LOCAL[0],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 7860,
    token: Annotated[
        str | None, typer.Option(envvar="PARACLIP_UI_TOKEN", help="The token; default: a new one at every start.")
    ] = None,
    heads: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="File of `paraclip expand`; its queries are ranked by their mean features as well.",
        ),
    ] = None,
    device: DeviceOption = "cpu",
    root: RootOption = DEFAULT_ROOT,
) -> None:
    """Serve a page to search an index by text: base next to tuned, a query and its paraphrase."""
    import secrets
    import socket

    import uvicorn

    from paraclip.tasks.image_index import search_target
    from paraclip.tasks.models import judgment
    from paraclip.tasks.search_page import make_app
    from paraclip.tasks.search_page.engine import Catalogue, SearchEngine
    from paraclip_core.clip.expansion import read_heads

    store = open_store(root)
    target = search_target(model, store, base, features, ids, images)
    expanded = None if heads is None else read_heads(heads)
    if token is None and host not in LOCAL:
        token = secrets.token_urlsafe(24)
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"cannot listen at {host}:{port}: {error.strerror}; choose another --port") from error
    say(f"loading models and {len(target.index):,} image features")
    engine = SearchEngine(target, device)
    verdict, report = judgment(model, store)
    facts = {"model": model, "verdict": verdict}
    app = make_app(engine, Catalogue(target, store), facts, token, report, expanded)
    place = f"http://{host}:{listener.getsockname()[1]}/"
    say(f"search page: {place}{f'?token={token}' if token else ''}; Ctrl-C ends it")
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


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
