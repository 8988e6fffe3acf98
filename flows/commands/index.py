"""`paraclip search`, `ui`, `audit` and `verify-index`: commands for an existing image index."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paraclip.flows.commands.common import (
    DEFAULT_ROOT,
    MODEL,
    DeviceOption,
    JsonOption,
    RootOption,
    print_facts,
    print_json,
    print_table,
    say,
)
from paraclip.storage.roots import open_store
from paraclip_core.errors import ConfigError

if TYPE_CHECKING:
    from paraclip_core.evaluation.audit import Figure
    from paraclip_core.evaluation.churn import Churn

INVALID = 1
LOCAL = ("127.0.0.1", "localhost", "::1")

ModelOption = Annotated[str, typer.Option("--model", "-m", help=MODEL)]
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
    device: DeviceOption = "cpu",
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Rank a run's images, or an index of your own, for a query: the base model's order next to the tuned one's."""
    from paraclip.tasks.image_index import search as nearest_images
    from paraclip.tasks.image_index import search_target

    if not query.strip():
        raise ConfigError("the query is empty; say in words what to look for")
    hits = nearest_images(search_target(model, open_store(root), base, features, ids), query, count, device)
    if as_json:
        print_json({"query": query, **{name: [asdict(hit) for hit in ranked] for name, ranked in hits.items()}})
        return
    rows = [
        {"rank": base.rank, "base": f"{base.image_id}: {base.caption or ''}", " ": base.score}
        | {"tuned": f"{tuned.image_id}: {tuned.caption or ''}", "  ": tuned.score}
        for base, tuned in zip(hits["base"], hits["tuned"], strict=True)
    ]
    print_table("", ["rank", "base", " ", "tuned", "  "], rows)


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
    from paraclip.tasks.image_index import verify_index as verify
    from paraclip.tasks.models import find_release

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
    from paraclip.tasks import image_index
    from paraclip_core.evaluation.audit import read_queries

    target = image_index.search_target(model, open_store(root), base, features, ids, images)
    texts, pairs = ([], None) if queries is None else read_queries(queries)
    result = image_index.audit(target, pairs or texts or None, device)
    names = {"base": "base", "tuned": "tuned"} if result.gain else {"base": "this model"}
    facts = {"base": target.base, "tuned": target.tuned} if result.gain else {"model": target.base}
    facts |= {"index": target.index.source, "queries": str(queries or "of the index itself")}
    image_index.write_page(out, result, target, names, facts)
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
    device: DeviceOption = "cpu",
    root: RootOption = DEFAULT_ROOT,
) -> None:
    """Serve a page to search an index by text: base next to tuned, a query and its paraphrase, marks that re-rank."""
    import secrets
    import socket

    import uvicorn

    from paraclip.tasks.image_index import search_target
    from paraclip.tasks.models import judgment
    from paraclip.tasks.search_page import Catalogue, Marks, SearchEngine, make_app

    store = open_store(root)
    target = search_target(model, store, base, features, ids, images)
    if token is None and host not in LOCAL:
        token = secrets.token_urlsafe(24)
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"cannot listen at {host}:{port}: {error.strerror}; choose another --port") from error
    say(f"loading models and {len(target.index):,} image features")
    engine = SearchEngine(target, device)
    marks = Marks(store.root / "feedback")
    verdict, report = judgment(model, store)
    app = make_app(engine, Catalogue(target, store), marks, {"model": model, "verdict": verdict}, token, report)
    place = f"http://{host}:{listener.getsockname()[1]}/"
    say(f"search page: {place}{f'?token={token}' if token else ''}")
    say(f"marks are kept in {store.root / 'feedback'}; Ctrl-C ends it")
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
