"""`paraclip deploy`, `serve` and `stop`: a configuration on a Prefect server, and a server on this machine."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from paraclip.flows import local_stack
from paraclip.flows.commands.common import (
    DEFAULT_ROOT,
    ConfigOption,
    JsonOption,
    RootOption,
    SetOption,
    leave_in_order,
    print_json,
    print_table,
    say,
)
from paraclip.flows.names import PASSWORD_VARIABLE, UNWATCHED
from paraclip.storage.roots import open_store
from paraclip_core.errors import ConfigError
from paraclip_core.settings import load_settings

ChannelOption = Annotated[
    str | None, typer.Option(help="Channel that `regenerate` moves; default: production, the demo's demo-production.")
]
CronOption = Annotated[
    str | None,
    typer.Option(
        help="When `regenerate` runs, such as '0 3 * * *'; '' for never; default: as it is deployed, or never."
    ),
]
TimezoneOption = Annotated[
    str | None, typer.Option(help="Time zone of --cron, such as Europe/Berlin; default: as it is deployed, or UTC.")
]


def deploy(
    config: ConfigOption = None,
    set_: SetOption = None,
    channel: ChannelOption = None,
    cron: CronOption = None,
    timezone: TimezoneOption = None,
    pool: Annotated[
        str | None, typer.Option(help="Work pool of the runs; default: as deployed, or paraclip-cpu.")
    ] = None,
    gpu_pool: Annotated[
        str | None,
        typer.Option(help="Work pool of stages that use a GPU; default: --pool, as deployed, or paraclip-gpu."),
    ] = None,
    image: Annotated[str | None, typer.Option(help="Container image of the runs (docker, kubernetes).")] = None,
    volume: Annotated[
        str | None, typer.Option(help="HOST:/data for docker, the name of a volume claim for kubernetes.")
    ] = None,
    secret: Annotated[
        str | None,
        typer.Option(help="Folder of secret files on the docker host, or the name of a Secret for kubernetes."),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(
            envvar="PARACLIP_ROOT", help="Root of the runs: a folder on the machine where they work, or a URL."
        ),
    ] = None,
    folder: Annotated[
        str | None,
        typer.Option(
            envvar="PARACLIP_HOME", help="Folder that relative paths in settings start from, where the runs work."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Register the pipeline, the nightly run and the stages of a configuration with a Prefect server.

    The deployments are called FLOW/RUN after the run's name, so several configurations live side by side. Call it again
    to update them from the file. Without `-c`, it registers the demo; if a configuration is already deployed,
    everything stays. The server is that of PREFECT_API_URL, of `paraclip serve` under the same root, or of Prefect's
    profile.
    """
    _find_server(root)
    # Prefect reads its environment when it is imported.
    from paraclip.flows.deploy import Nightly, renew_server
    from paraclip.flows.places import Target

    target = Target(pool, gpu_pool, image, volume, secret, root, folder)
    deployed = renew_server(config, set_ or (), target, Nightly(channel, cron, timezone))
    if as_json:
        print_json({"deployments": deployed.rows, **deployed.facts, "notes": deployed.notes})
        return
    if deployed.rows:
        print_table("", list(deployed.rows[0]), deployed.rows)
        say(", ".join(f"{name}: {value}" for name, value in deployed.facts.items()))
    for note in deployed.notes:
        say(note)


def _find_server(root: str | None) -> None:
    """Point Prefect's environment at the right server; call it before anything imports prefect."""
    for name, value in UNWATCHED.items():
        os.environ.setdefault(name, value)
    if "PREFECT_API_URL" in os.environ:
        return
    if "://" not in (root or DEFAULT_ROOT) and (server := local_stack.client_environment(Path(root or DEFAULT_ROOT))):
        os.environ.update(server)
        return
    from prefect.settings import get_current_settings

    if get_current_settings().api.url is None:
        raise ConfigError(
            "no Prefect server is named; set PREFECT_API_URL (and PREFECT_API_AUTH_STRING, or PREFECT_API_KEY), or "
            "start one with `paraclip serve`"
        )


def serve(
    config: ConfigOption = None,
    set_: SetOption = None,
    channel: ChannelOption = None,
    cron: CronOption = None,
    timezone: TimezoneOption = None,
    root: RootOption = DEFAULT_ROOT,
    port: Annotated[
        int, typer.Option(min=1, max=65534, help="Port of the server, on 127.0.0.1; reports get the next one.")
    ] = 4200,
    folder: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Folder that relative paths in settings start from.")
    ] = Path(),
) -> None:
    """Start a Prefect server, two work pools with a worker each, and `deploy` a configuration there.

    What already runs stays. Call it again with another `-c` for a second configuration.
    """
    if config or set_:
        # What is wrong in it is known before a server is started.
        load_settings(config or "demo", set_ or ())
    store = open_store(root)
    leave_in_order()
    arguments = [f"--config={config}"] if config else []
    arguments += [f"--set={override}" for override in set_ or ()]
    given: dict[str, Any] = {"channel": channel, "cron": cron, "timezone": timezone}
    arguments += [f"--{name}={value}" for name, value in given.items() if value is not None]
    processes, text = local_stack.serve(store.root, port, folder.absolute(), arguments, store.location)
    say(text)
    url = processes[0].url
    # The password itself stays out of the terminal, whose output others may read.
    path = local_stack.password_file(store.root)
    chosen = not path.exists() or path.read_text().strip() != processes[0].password
    login = "your own" if chosen else f"the USER:PASSWORD in {path}"
    typer.echo(f"UI: {url}, reports: {local_stack.pages_url(url)}, login of both: {login}")
    password = "USER:PASSWORD" if chosen else f'"$(cat {shlex.quote(str(path))})"'
    typer.echo(f"for prefect: export PREFECT_API_URL={url}/api {PASSWORD_VARIABLE}={password}")
    typer.echo(f"logs: {store.root / 'logs'}; `paraclip stop --root {root}` ends it")


def stop(root: RootOption = DEFAULT_ROOT) -> None:
    """End the processes that `serve` started under this root, and no others."""
    ended = local_stack.stop(open_store(root).root)
    typer.echo(f"ended: {', '.join(ended)}" if ended else f"nothing runs under {root}")
