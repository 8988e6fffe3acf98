"""The deployments of one configuration on a Prefect server: its pipeline, nightly run, stages, and the way back.

A deployment is called FLOW/RUN, after the run's name, so several configurations live side by side. The configuration is
the only source: parameters that a person changed in the UI are reset, and every change is reported. Schedules, pauses,
limits and job variables stay.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from prefect import Flow, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

from paraclip.flows.automations import create_automations, watch_unfinished
from paraclip.flows.deployments import RELEASE, Existing, shown_schedule
from paraclip.flows.names import TAG
from paraclip.flows.own_server import check_server
from paraclip.flows.pipeline import pipeline
from paraclip.flows.places import CHANGE_FOLDER, PARENTS, Place, Target
from paraclip.flows.regenerate import regenerate, rollback
from paraclip.flows.stages import STAGE_FLOWS
from paraclip.tasks.run.run import stages_of
from paraclip.tasks.stages.queries import ASKING, QUERIES
from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError
from paraclip_core.paraphrase.paraphraser import Paraphraser, check_needs
from paraclip_core.settings import load_settings

DEMO = "demo"
"""The configuration to deploy if none is named."""
PRODUCTION = "production"
ONE_AT_A_TIME = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
MAY_CHANGE = ("channel", "cron", "timezone", "pool", "gpu_pool", "image", "volume", "secret")
"""What an option of the command changes in one configuration."""
FORBIDDEN = "/%&<>"
"""Characters that a deployment's name cannot contain."""
SHOWN = 12


class Nightly(NamedTuple):
    """When `regenerate` runs, and which channel it moves."""

    channel: str | None = None
    cron: str | None = None
    """None keeps the deployed schedules; an empty string removes them."""
    timezone: str | None = None
    """None keeps the deployed time zone, or means UTC."""


class Deployed(NamedTuple):
    """What :func:`deploy` did."""

    rows: list[dict[str, Any]]
    """One for each deployment: name, pool, type, queue, schedule."""
    facts: dict[str, str]
    """Root and folder of the runs, their image, volume and secret, and the channel."""
    notes: list[str]
    """What was reset, removed, or is missing."""
    waiting: list[str]
    """Notes on the pools without a worker."""


class _Part(NamedTuple):
    """A flow to deploy."""

    flow: Flow[..., Any]
    on_gpu: bool = False
    queue: str | None = None
    alone: bool = False
    """Whether only one run may work at a time, because the answers cache and the channels are shared."""

    @property
    def name(self) -> str:
        return self.flow.name


def renew_server(config: Path | None, overrides: Sequence[str], target: Target, nightly: Nightly) -> Deployed:
    """Deploy a configuration, or the demo to a server without any, and renew the server's automations."""
    check_server()
    given = nightly._asdict() | asdict(target)
    changes = [f"--{name.replace('_', '-')}" for name in MAY_CHANGE if given[name] is not None]
    named = config is not None or bool(overrides)
    with get_client(sync_client=True) as client:
        existing = Existing.read(client)
        if changes and not named and (others := existing.configurations() - {DEMO}):
            raise ConfigError(
                f"{', '.join(changes)}: of which configuration? Deployed are {', '.join(sorted(others))}; give its "
                "file with -c"
            )
        if named or changes or not existing.deployments:
            # The runs take their root from PARACLIP_ROOT, which a root in the file would override.
            deployed = deploy(existing, load_settings(config or DEMO, overrides), target, nightly)
        else:
            deployed = Deployed([], {}, existing.of_other_releases(), [])
    create_automations()
    watch_unfinished()
    return deployed


def deploy(existing: Existing, settings: Settings, target: Target, nightly: Nightly) -> Deployed:
    """Register the deployments of one configuration on the server; `existing` ones are updated in place.

    Raises:
        ConfigError: a name, pool, schedule or channel cannot be used; deployments and queues are unchanged.
    """
    name, client = settings.name, existing.client
    if bad := sorted(set(FORBIDDEN) & set(name)):
        raise ConfigError(f"name: {name!r} cannot name deployments, because it has {' '.join(bad)}; leave them out")
    own = existing.of(name)
    channel = _channel(name, nightly.channel, existing)
    schedules = _schedules(nightly, own.get("regenerate"))
    check_needs(settings.paraphrase)
    place, parts = Place.find(client, settings, target, own), _parts(settings)
    # After everything that may be refused.
    place.limit_parents(client)
    rows, notes, changed = [], [], defaultdict(list)
    for part in parts:
        path, old, parameters = f"{part.name}/{name}", own.get(part.name), _parameters(part, settings, channel)
        asked = schedules if part.flow is regenerate else None
        planned = asked if asked is not None else old.schedules if old else []
        if differences := _differences(old, parameters):
            changed[differences].append(path)
        was, now = (", ".join(map(shown_schedule, schedules)) for schedules in (old.schedules if old else (), planned))
        notes += [f"{path}: schedule {was} → {now or 'none'}"] if was not in ("", now) else []
        _register(client, name, part, _fields(part, place, parameters, old), old, asked)
        pool = place.pools[part.on_gpu]
        row = {"deployment": path, "pool": pool.name, "type": pool.type}
        rows.append(row | {"queue": part.queue or "default", "schedule": now})
    for differences, (path, *more) in reversed(changed.items()):
        follows = f"{path} {f'and {len(more)} more follow' if more else 'follows'} the configuration"
        notes.insert(0, f"{follows}: {differences}")
    notes += place.without_image(own.get("pipeline"))
    notes += existing.remove_others({f"{part.name}/{name}" for part in parts}, name)
    given = {name: value for name in ("image", "volume", "secret") if (value := getattr(target, name))}
    facts = {"root": place.root, "folder": place.folder, **given, "channel": channel}
    return Deployed(rows, facts, notes, place.without_workers(client))


def _register(
    client: SyncPrefectClient,
    name: str,
    part: _Part,
    fields: Mapping[str, Any],
    old: DeploymentResponse | None,
    schedules: Sequence[DeploymentScheduleCreate] | None,
) -> None:
    """Create a deployment, or update these fields of `old`, whose pause, tags and limit stay.

    Schedules stay, too, if `schedules` is None.
    """
    if old is None:
        flow = client.create_flow_from_name(part.name)
        client.create_deployment(flow, name, tags=[TAG], schedules=list(schedules or ()), **fields)
        return
    client.update_deployment(old.id, DeploymentUpdate(**fields))
    if schedules is None:
        return
    for deployed in old.schedules:
        client.delete_deployment_schedule(old.id, deployed.id)
    if schedules:
        client.create_deployment_schedules(old.id, list(schedules))


def _fields(part: _Part, place: Place, parameters: Mapping[str, Any], old: DeploymentResponse | None) -> dict[str, Any]:
    """The fields of a deployment that the configuration sets, whatever was deployed before."""
    limit = {"concurrency_limit": 1, "concurrency_options": ONE_AT_A_TIME} if part.alone else {}
    return {
        "version": RELEASE,
        "entrypoint": f"{part.flow.fn.__module__}.{part.flow.fn.__name__}",
        "work_pool_name": place.pools[part.on_gpu].name,
        "work_queue_name": part.queue,
        "parameters": parameters,
        "parameter_openapi_schema": parameter_schema(part.flow).model_dump(exclude_unset=True),
        "enforce_parameter_schema": True,
        "description": part.flow.description,
        # Before a run imports its flow.
        "pull_steps": [{CHANGE_FOLDER: {"directory": place.folder}}],
        "job_variables": _merged(old.job_variables if old else {}, place.variables[part.on_gpu]),
        **limit,
    }


def _parts(settings: Settings) -> list[_Part]:
    paraphrase, queries = settings.paraphrase, settings.for_queries() or settings.paraphrase
    local = {name: Paraphraser(queries if name == QUERIES.name else paraphrase).facts.local for name in ASKING}
    parts = []
    for name, stage in stages_of(settings).items():
        # A GPU worker would only wait for a server elsewhere.
        on_gpu = stage.pool == "gpu" and local.get(name, True)
        parts.append(_Part(STAGE_FLOWS[name], on_gpu, alone=name in ASKING))
    return [_Part(pipeline, queue=PARENTS), _Part(regenerate, queue=PARENTS, alone=True), _Part(rollback), *parts]


def _parameters(part: _Part, settings: Settings, channel: str) -> dict[str, Any]:
    """What the configuration's file sets, except the root, which comes from the environment of the runs."""
    if part.flow is rollback:
        return {"channel": channel}
    tree = settings.model_dump(mode="json", exclude_unset=True)
    tree.get("run", {}).pop("root", None)
    return {"settings": tree, **({"channel": channel} if part.flow is regenerate else {})}


def _channel(name: str, given: str | None, existing: Existing) -> str:
    """The channel that this configuration's `regenerate` moves; no other configuration may move it."""
    # From `rollback`, because what a person changed in the form of `regenerate` is reset.
    current = existing.of(name).get("rollback")
    default = f"{DEMO}-{PRODUCTION}" if name == DEMO else PRODUCTION
    channel = given or (current.parameters.get("channel") if current else None) or default
    if channel == name:
        raise ConfigError(f"--channel {channel}: a channel with a run's own name follows every run; choose another one")
    for path, deployment in existing.deployments.items():
        moves = path.startswith("regenerate/") and deployment.parameters.get("channel") == channel
        if moves and deployment.name != name:
            raise ConfigError(
                f"{path} moves the channel {channel!r} already, and a channel serves one job; choose "
                f"another with --channel, for example --channel {name}-{PRODUCTION}"
            )
    return channel


def _schedules(nightly: Nightly, old: DeploymentResponse | None) -> list[DeploymentScheduleCreate] | None:
    """The schedules that the command names; None to keep the deployed ones."""
    if nightly.cron is None:
        if nightly.timezone is not None:
            raise ConfigError("--timezone is for --cron; give both")
        return None
    if not nightly.cron:
        return []
    before = old.schedules if old else []
    zone = nightly.timezone or (getattr(before[0].schedule, "timezone", None) if before else None) or "UTC"
    try:
        schedule = CronSchedule(cron=nightly.cron, timezone=zone)
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"--cron {nightly.cron!r} --timezone {zone}: {problem}; expected five fields, such as '0 3 * * *', and a "
            "zone such as Europe/Berlin"
        ) from error
    # What a person has paused stays paused.
    return [DeploymentScheduleCreate(schedule=schedule, active=all(deployed.active for deployed in before))]


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Our values over those that a person has set for a deployment, such as a memory limit."""
    merged = {**old, **new, "env": {**(old.get("env") or {}), **new["env"]}}
    if "volumes" in merged:
        # Docker's HOST:FOLDER[:ro]; one option names the data and another the secrets.
        volumes = (*(old.get("volumes") or ()), *new.get("volumes", ()))
        folders = {volume.split(":")[:2][-1]: volume for volume in volumes}
        merged["volumes"] = list(folders.values())
    return merged


def _differences(old: DeploymentResponse | None, parameters: Mapping[str, Any]) -> str:
    """The parameters that differ from the deployed ones, old → new; empty if none does."""
    was, now = (dict(_leaves(tree)) for tree in (old.parameters if old else parameters, parameters))
    differing = sorted(option for option in was.keys() | now.keys() if was.get(option, ...) != now.get(option, ...))
    shown = [
        f"{option.removeprefix('settings.')} {_value(was, option)} → {_value(now, option)}"
        for option in differing[:SHOWN]
    ]
    return ", ".join(shown) + (f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else "")


def _value(tree: Mapping[str, Any], name: str) -> str:
    return json.dumps(tree[name], ensure_ascii=False) if name in tree else "(default)"


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, Mapping) or not tree:
        yield prefix, tree
        return
    for name, value in tree.items():
        yield from _leaves(value, f"{prefix}.{name}" if prefix else str(name))
