"""`paraclip ui`: a page to search an image index."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from paraclip.flows.commands.common import DEFAULT_ROOT, DeviceOption, ModelOption, RootOption, say
from paraclip.flows.commands.index_options import BaseOption, FeaturesOption, IdsOption, ImagesOption
from paraclip.storage.roots import open_store
from paraclip.tasks.image_index import search_target
from paraclip.tasks.models import judgment
from paraclip.tasks.search_page import make_app
from paraclip.tasks.search_page.engine import Catalogue, SearchEngine
from paraclip_core.clip.expansion import read_heads
from paraclip_core.errors import ConfigError

LOCAL = ("127.0.0.1", "localhost", "::1")


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
    app = make_app(engine, Catalogue(target), facts, token, report, expanded)
    place = f"http://{host}:{listener.getsockname()[1]}/"
    say(f"search page: {place}{f'?token={token}' if token else ''}")
    say("Ctrl-C ends it")
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
