"""The deployments of one configuration on a Prefect server: its pipeline, nightly run, stages, and the way back.

A deployment is called FLOW/RUN, after the run's name, so several configurations live side by side. The configuration is
the only source: what a person changed in the UI is reset and reported, except schedules, pauses, limits and job
variables, which stay.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

from prefect import Flow
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

from paraclip.flows.deployments import Existing, release_of, shown_schedule
from paraclip.flows.names import MARK, TAG
from paraclip.flows.pipeline import pipeline
from paraclip.flows.places import PARENTS, Place, Target
from paraclip.flows.regenerate import regenerate, rollback
from paraclip.flows.stages import STAGE_FLOWS
from paraclip.tasks.run.execute import built_in
from paraclip.tasks.run.run import stages_of
from paraclip.tasks.stages.queries import ASKING, QUERIES
from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError
from paraclip_core.paraphrase.paraphraser import Paraphraser, check_needs

DEMO = "demo"
"""The configuration to deploy if none is named."""
PRODUCTION = "production"
ONE_AT_A_TIME = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
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

    @property
    def entrypoint(self) -> str:
        return f"{self.flow.fn.__module__}.{self.flow.fn.__name__}"


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
    rows, notes = [], []
    for part in parts:
        path, old, parameters = f"{part.name}/{name}", own.get(part.name), _parameters(part, settings, channel)
        planned = schedules if part.flow is regenerate else _kept(old)
        notes += [*_put_back(path, old, parameters), *_rescheduled(path, old, planned)]
        client.create_deployment(
            flow_id=client.create_flow_from_name(part.name),
            name=name,
            schedules=planned,
            **_fields(part, place, parameters),
            **_carried_over(part, place, old),
        )
        pool, shown = place.pools[part.on_gpu], ", ".join(map(shown_schedule, planned))
        row = {"deployment": path, "pool": pool.name, "type": pool.type}
        rows.append(row | {"queue": part.queue or "default", "schedule": shown})
    notes += place.without_image(own.get("pipeline"))
    notes += existing.remove({f"{part.name}/{name}" for part in parts}, name)
    # `paraclip serve` starts its workers afterwards.
    notes += [] if MARK in os.environ else place.without_workers(client)
    given = {name: value for name in ("image", "volume", "secret") if (value := getattr(target, name))}
    return Deployed(rows, {"root": place.root, "folder": place.folder, **given, "channel": channel}, notes)


def _fields(part: _Part, place: Place, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a deployment that the configuration sets, whatever was deployed before."""
    return {
        "version": _version(parameters),
        "entrypoint": part.entrypoint,
        "work_pool_name": place.pools[part.on_gpu].name,
        "work_queue_name": part.queue,
        "parameters": parameters,
        "parameter_openapi_schema": parameter_schema(part.flow).model_dump(exclude_unset=True),
        "enforce_parameter_schema": True,
        "description": part.flow.description,
        "pull_steps": place.pull_steps,
    }


def _carried_over(part: _Part, place: Place, old: DeploymentResponse | None) -> dict[str, Any]:
    """The fields of a deployment that a person may have set and that stay: pause, tags, job variables and limit."""
    return {
        "paused": old.paused if old else False,
        "tags": sorted({TAG, *(old.tags if old else ())}),
        "job_variables": _merged(old.job_variables if old else {}, place.variables[part.on_gpu]),
        **_concurrency(part, old),
    }


def _parts(settings: Settings) -> list[_Part]:
    paraphrase, queries = settings.paraphrase, settings.for_queries() or settings.paraphrase
    local = {name: Paraphraser(queries if name == QUERIES.name else paraphrase).facts.local for name in ASKING}
    parts = []
    for name, stage in stages_of(settings).items():
        # A custom stage has no deployment. A GPU worker would only wait for a server elsewhere.
        if built_in(stage):
            on_gpu = stage.pool == "gpu" and local.get(name, True)
            parts.append(_Part(STAGE_FLOWS[name], on_gpu, alone=name in ASKING))
    return [
        _Part(pipeline, queue=PARENTS),
        _Part(regenerate, queue=PARENTS, alone=True),
        _Part(rollback),
        *parts,
    ]


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
    for path, one in existing.deployments.items():
        taken = path.startswith("regenerate/") and one.name != name and release_of(one)
        if taken and one.parameters.get("channel") == channel:
            raise ConfigError(
                f"regenerate/{one.name} moves the channel {channel!r} already, and a channel serves one job; choose "
                f"another with --channel, for example --channel {name}-{PRODUCTION}"
            )
    return channel


def _schedules(nightly: Nightly, old: DeploymentResponse | None) -> list[DeploymentScheduleCreate]:
    if nightly.cron is None:
        if nightly.timezone is not None:
            raise ConfigError("--timezone is for --cron; give both")
        return _kept(old)
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
    return [DeploymentScheduleCreate(schedule=schedule, active=all(one.active for one in before))]


def _rescheduled(path: str, old: DeploymentResponse | None, planned: Iterable[Any]) -> list[str]:
    """Notes on changed schedules: the old ones and what replaces them."""
    was, now = (", ".join(map(shown_schedule, some)) for some in (old.schedules if old else (), planned))
    return [f"{path}: schedule {was} → {now or 'none'}"] if was not in ("", now) else []


def _kept(old: DeploymentResponse | None) -> list[DeploymentScheduleCreate]:
    names = ("schedule", "active", "max_scheduled_runs", "parameters", "slug")
    return [
        DeploymentScheduleCreate(**{name: getattr(one, name) for name in names})
        for one in (old.schedules if old else ())
    ]


def _concurrency(part: _Part, old: DeploymentResponse | None) -> dict[str, Any]:
    """How many runs of a deployment may work at once; a limit that a person has set stays."""
    if part.alone:
        return {"concurrency_limit": 1, "concurrency_options": ONE_AT_A_TIME}
    limit = old.global_concurrency_limit if old else None
    return {"concurrency_limit": limit.limit, "concurrency_options": old.concurrency_options} if old and limit else {}


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Our values over those that a person has set for a deployment, such as a memory limit."""
    merged = {**old, **new, "env": {**(old.get("env") or {}), **new["env"]}}
    if "volumes" in merged:
        # Docker's HOST:FOLDER[:ro]; one option names the data and another the secrets.
        folders = {one.split(":")[:2][-1]: one for one in (*(old.get("volumes") or ()), *new.get("volumes", ()))}
        merged["volumes"] = list(folders.values())
    return merged


def _digest(parameters: Mapping[str, Any]) -> str:
    text = json.dumps(parameters, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _version(parameters: Mapping[str, Any]) -> str:
    """The version of a deployment: this release, and a digest that shows a later deploy if a person changed it."""
    return f"paraclip-{version('paraclip')}-{_digest(parameters)}"


def _put_back(path: str, old: DeploymentResponse | None, parameters: Mapping[str, Any]) -> list[str]:
    """Notes on the parameters that differ from the server's, and on who changed them."""
    if old is None:
        return []
    changed = not (old.version or "").endswith(f"-{_digest(old.parameters)}")
    was, now = (dict(_leaves(tree)) for tree in (old.parameters, parameters))
    differing = sorted(option for option in was.keys() | now.keys() if was.get(option, ...) != now.get(option, ...))
    # The file itself changed: reported once for all of its deployments.
    if not differing or not (changed or path.startswith("pipeline/")):
        return []
    shown = [f"{one.removeprefix('settings.')} {_value(was, one)} → {_value(now, one)}" for one in differing[:SHOWN]]
    more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
    how = "was changed on the server and is reset to the configuration" if changed else "follows the configuration"
    return [f"{path} {how}: {', '.join(shown)}{more}"]


def _value(tree: Mapping[str, Any], name: str) -> str:
    return json.dumps(tree[name], ensure_ascii=False) if name in tree else "(default)"


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, Mapping) or not tree:
        yield prefix, tree
        return
    for name, value in tree.items():
        yield from _leaves(value, f"{prefix}.{name}" if prefix else str(name))
