"""`paraclip deploy` and `serve`: a configuration on a Prefect server, and a server on this machine."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from paraclip.flows.deploy import Deployed

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
    image: Annotated[str | None, typer.Option(help="Container image of the runs, for pools of containers.")] = None,
    volume: Annotated[str | None, typer.Option(help="HOST:/data, for docker pools.")] = None,
    secret: Annotated[str | None, typer.Option(help="Folder of secret files on the docker host.")] = None,
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
    everything stays. The server is that of PREFECT_API_URL, or of Prefect's profile.
    """
    _find_server()
    # Prefect reads its environment when it is imported.
    from paraclip.flows.deploy import Nightly, renew_server
    from paraclip.flows.places import Target

    target = Target(pool, gpu_pool, image, volume, secret, root, folder)
    deployed = renew_server(config, set_ or (), target, Nightly(channel, cron, timezone))
    if as_json:
        notes = [*deployed.notes, *deployed.waiting]
        print_json({"deployments": deployed.rows, **deployed.facts, "notes": notes})
        return
    _print_deployed(deployed)
    for note in deployed.waiting:
        say(note)


def _print_deployed(deployed: Deployed) -> None:
    if deployed.rows:
        print_table("", list(deployed.rows[0]), deployed.rows)
        say(", ".join(f"{name}: {value}" for name, value in deployed.facts.items()))
    for note in deployed.notes:
        say(note)


def _find_server() -> None:
    """Point Prefect's environment at the right server; call it before anything imports prefect."""
    for name, value in UNWATCHED.items():
        os.environ.setdefault(name, value)
    if "PREFECT_API_URL" in os.environ:
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
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the server, on 127.0.0.1.")] = 4200,
    folder: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Folder that relative paths in settings start from.")
    ] = Path(),
) -> None:
    """Run a Prefect server in the foreground, `deploy` a configuration there, and run a worker for each of two pools.

    Ctrl-C ends all of them. `paraclip deploy` adds a second configuration.
    """
    if config or set_:
        # What is wrong in it is known before a server is started.
        load_settings(config or "demo", set_ or ())
    store = open_store(root)
    leave_in_order()

    def deployed(url: str) -> None:
        from paraclip.flows.deploy import Nightly, renew_server
        from paraclip.flows.places import Target

        target = Target(root=store.location, folder=str(folder))
        _print_deployed(renew_server(config, set_ or (), target, Nightly(channel, cron, timezone)))
        # The password itself stays out of the terminal, whose output others may read.
        path = local_stack.password_file(store.root)
        own = not path.exists() or path.read_text().strip() != os.environ[PASSWORD_VARIABLE]
        password = "USER:PASSWORD" if own else f'"$(cat {shlex.quote(str(path))})"'
        typer.echo(f"UI: {url}, login: {'your own' if own else f'the USER:PASSWORD in {path}'}; Ctrl-C ends it")
        typer.echo(f"for other terminals: export PREFECT_API_URL={url}/api {PASSWORD_VARIABLE}={password}")

    local_stack.serve(store.root, port, deployed)
