"""`paraclip deploy`, `serve` and `stop`: a configuration on a Prefect server, and a server on this machine."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

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
    # Prefect takes seconds to import, so only now.
    from prefect import get_client

    from paraclip.flows.alerts import EVERY, follow_deployments
    from paraclip.flows.automations import create_automations, remove_left_behind, watch_unfinished
    from paraclip.flows.deploy import DEMO, Deployed, Nightly
    from paraclip.flows.deploy import deploy as register
    from paraclip.flows.deployments import Existing, renew
    from paraclip.flows.own_server import check_server
    from paraclip.flows.places import Target

    check_server()
    named = config is not None or bool(set_)
    options = {
        "--channel": channel, "--cron": cron, "--timezone": timezone, "--pool": pool, "--gpu-pool": gpu_pool,
        "--image": image, "--volume": volume, "--secret": secret,
    }  # fmt: skip
    changes = [option for option, value in options.items() if value is not None]
    with get_client(sync_client=True) as client:
        existing = Existing.read(client)
        if changes and not named and (others := existing.configurations() - {DEMO}):
            raise ConfigError(
                f"{', '.join(changes)}: of which configuration? Deployed are {', '.join(sorted(others))}; give its "
                "file with -c"
            )
        if named or changes or not existing.current:
            # The runs take their root from PARACLIP_ROOT, which a root in the file would override.
            settings = load_settings(config or DEMO, set_ or ())
            target = Target(pool, gpu_pool, image, volume, secret, root, folder)
            deployed = register(existing, settings, target, Nightly(channel, cron, timezone))
        else:
            deployed = Deployed([], {}, renew(existing))
    create_automations()
    follow_deployments()
    notes = [*deployed.notes, *remove_left_behind(EVERY)]
    watch_unfinished()
    if as_json:
        print_json({"deployments": deployed.rows, **deployed.facts, "notes": notes})
        return
    if deployed.rows:
        print_table("", list(deployed.rows[0]), deployed.rows)
        say(", ".join(f"{name}: {value}" for name, value in deployed.facts.items()))
    for note in notes:
        say(note)


def _find_server(root: str | None) -> None:
    """Point Prefect's environment at the right server; call it before anything imports prefect."""
    from paraclip.flows.local_stack import client_environment
    from paraclip.flows.names import UNWATCHED

    for name, value in UNWATCHED.items():
        os.environ.setdefault(name, value)
    if "PREFECT_API_URL" in os.environ:
        return
    if "://" not in (root or DEFAULT_ROOT) and (server := client_environment(Path(root or DEFAULT_ROOT))):
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
    from paraclip.flows.local_stack import pages_url, password_file
    from paraclip.flows.local_stack import serve as start_stack
    from paraclip.flows.names import PASSWORD_VARIABLE

    if config or set_:
        # What is wrong in it is known before a server is started.
        load_settings(config or "demo", set_ or ())
    store = open_store(root)
    leave_in_order()
    arguments = [f"--config={config}"] if config else []
    arguments += [f"--set={one}" for one in set_ or ()]
    given: dict[str, Any] = {"channel": channel, "cron": cron, "timezone": timezone}
    arguments += [f"--{name}={value}" for name, value in given.items() if value is not None]
    processes, text = start_stack(store.root, port, folder.absolute(), arguments, store.location)
    say(text)
    url = processes[0].url
    # The password itself stays out of the terminal, whose output others may read.
    path = password_file(store.root)
    chosen = not path.exists() or path.read_text().strip() != processes[0].password
    login = "your own" if chosen else f"the USER:PASSWORD in {path}"
    typer.echo(f"UI: {url}, reports: {pages_url(url)}, login of both: {login}")
    password = "USER:PASSWORD" if chosen else f'"$(cat {shlex.quote(str(path))})"'
    typer.echo(f"for prefect: export PREFECT_API_URL={url}/api {PASSWORD_VARIABLE}={password}")
    typer.echo(f"logs: {store.root / 'logs'}; `paraclip stop --root {root}` ends it")


def stop(root: RootOption = DEFAULT_ROOT) -> None:
    """End the processes that `serve` started under this root, and no others."""
    from paraclip.flows.local_stack import stop as stop_stack

    ended = stop_stack(open_store(root).root)
    typer.echo(f"ended: {', '.join(ended)}" if ended else f"nothing runs under {root}")
