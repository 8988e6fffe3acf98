"""`paraclip serve` and `paraclip stop`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paraclip.flows.commands.common import DEFAULT_ROOT, JsonOption, RootOption, leave_in_order, print_json

SHIPPED = Path(__file__).parents[1] / "prefect.yaml"


def serve(
    root: RootOption = DEFAULT_ROOT,
    port: Annotated[
        int, typer.Option(min=1, max=65534, help="Port of the server, on 127.0.0.1; reports get the next one.")
    ] = 4200,
    folder: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Folder that relative paths in settings start from.")
    ] = Path(),
    prefect_file: Annotated[
        Path | None, typer.Option(exists=True, help="Deployments; default: prefect.yaml here, or the shipped one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start a Prefect server, two work pools and a worker each, and register every deployment."""
    from paraclip.flows.local_stack import PASSWORD_VARIABLE, pages_url, password_file
    from paraclip.flows.local_stack import serve as start_stack
    from paraclip.storage.roots import open_store

    store = open_store(root)
    leave_in_order()
    processes = start_stack(store.root, port, folder.absolute(), prefect_file or _prefect_file(), store.location)
    url = processes[0].url
    if as_json:
        parts = [{"name": process.name, "pid": process.pid} for process in processes]
        print_json({"url": url, "pages": pages_url(url), "processes": parts})
        return
    # The password itself stays out of the terminal, whose output others may read.
    path = password_file(store.root)
    own = not path.exists() or path.read_text().strip() != processes[0].password
    login = "your own" if own else f"the USER:PASSWORD in {path}"
    typer.echo(f"UI: {url}, reports: {pages_url(url)}, login of both: {login}")
    password = "USER:PASSWORD" if own else f'"$(cat {path})"'
    typer.echo(f"for prefect: export PREFECT_API_URL={url}/api {PASSWORD_VARIABLE}={password}")
    typer.echo(f"logs: {store.root / 'logs'}; `paraclip stop --root {root}` ends it")


def stop(root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """End exactly the processes that `serve` started under this root."""
    from paraclip.flows.local_stack import stop as stop_stack
    from paraclip.storage.roots import open_store

    ended = stop_stack(open_store(root).root)
    if as_json:
        print_json({"ended": ended})
    else:
        typer.echo(f"ended: {', '.join(ended)}" if ended else f"nothing runs under {root}")


def _prefect_file() -> Path:
    own = Path.cwd() / SHIPPED.name
    return own if own.is_file() else SHIPPED
