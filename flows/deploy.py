"""The deployments of one configuration on a Prefect server: its pipeline, nightly run, stages, and the way back.

A deployment is called FLOW/RUN, after the run's name, so several configurations live side by side. The configuration is
the one source: what a person changed in the UI is put back and reported, except schedules, pauses, limits and
job variables, which stay.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from prefect import Flow, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker
from pydantic import ValidationError

from paraclip.flows.automations import PAGE
from paraclip.flows.local_stack import ADDRESS_VARIABLE, CPU_RUNS, HEARTBEAT, MARK, OWN_LOGGERS, POOLS, TAG
from paraclip.flows.pipeline import pipeline
from paraclip.flows.regenerate import regenerate, rollback
from paraclip.flows.stages import STAGE_FLOWS
from paraclip.tasks.run.dag import STAGES
from paraclip.tasks.run.run import stages_of
from paraclip.tasks.stages.paraphrase import STEPS
from paraclip_core.config import RunOptions, Settings
from paraclip_core.errors import ConfigError
from paraclip_core.paraphrase.paraphraser import Paraphraser, check_needs

DEMO = "demo"
"""The configuration that is deployed where none is named."""
PRODUCTION = "production"
PARENTS = "pipelines"
"""Queue in the CPU pool of the flows that may wait for stages in that pool, which must find room there."""
PARENT_RUNS = CPU_RUNS * 3 // 4
ONE_AT_A_TIME = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
CONTAINER_HOME, CONTAINER_ROOT = "/data", "/data/root"
"""Where relative paths start, and the root, in the image of docker/Dockerfile."""
SECRETS = "/run/secrets"
"""Where a container finds the files of secrets, each named like the variable that it stands for."""
MODULES = ("paraclip.flows.", "flows.")
"""Where the entry points of our deployments begin, earlier releases' included."""
CHANGE_FOLDER = "prefect.deployments.steps.set_working_directory"
FORBIDDEN = "/%&<>"
"""Characters that a deployment's name cannot have."""
SHOWN = 12


@dataclass(frozen=True)
class Target:
    """Where the flow runs of a configuration work. What is None stays as it is deployed, or is the default."""

    pool: str | None = None
    """Work pool of pipelines and stages that need no GPU."""
    gpu_pool: str | None = None
    image: str | None = None
    """Container image, for pools of type docker and kubernetes."""
    volume: str | None = None
    """`HOST:/data` for docker, the name of the claim for kubernetes."""
    secret: str | None = None
    """Folder of secret files on the docker host, or the name of the Kubernetes Secret."""
    root: str | None = None
    folder: str | None = None
    """Where relative paths in the settings start."""


class Nightly(NamedTuple):
    """When `regenerate` runs, and what it moves."""

    channel: str | None = None
    cron: str | None = None
    """None keeps the schedules that are deployed; empty removes them."""
    timezone: str | None = None
    """None keeps the zone that is deployed, or is UTC."""


class Deployed(NamedTuple):
    """What :func:`deploy` did."""

    rows: list[dict[str, Any]]
    """One for each deployment: name, pool, type, queue, schedule."""
    facts: dict[str, str]
    """Root and folder of the runs, the image, volume and secret that they are given, and the channel."""
    notes: list[str]
    """What was put back, removed, or is missing."""


class _Part(NamedTuple):
    """A flow to deploy."""

    flow: Flow[..., Any]
    on_gpu: bool = False
    queue: str | None = None
    alone: bool = False
    """One run at a time: the generation cache and the channels are shared."""

    @property
    def name(self) -> str:
        return self.flow.name

    @property
    def entrypoint(self) -> str:
        return f"{self.flow.fn.__module__}.{self.flow.fn.__name__}"


def deploy(settings: Settings, target: Target, nightly: Nightly) -> Deployed:
    """Register the deployments of one configuration, in place where they exist.

    Raises:
        ConfigError: a name, pool, schedule or channel cannot be used; no deployment and no queue was changed.
    """
    name = settings.name
    if bad := sorted(set(FORBIDDEN) & set(name)):
        raise ConfigError(f"name: {name!r} cannot name deployments, for it has {' '.join(bad)}; leave them out")
    with get_client(sync_client=True) as client:
        before = Existing.read(client)
        own = before.of(name)
        channel = _channel(name, nightly.channel, before)
        schedules = _schedules(nightly, own.get("regenerate"))
        check_needs(settings.paraphrase)
        pools = _pools(client, target, own)
        root, folder = _places(settings, target, pools, own.get("pipeline") if target.pool is None else None)
        parts = _parts(settings)
        variables = {on_gpu: _job_variables(pool, target, root) for on_gpu, pool in pools.items()}
        _check_used(target, variables)
        # After all that may be refused.
        _limit_parents(client, pools[False].name)
        rows, notes = [], []
        for part in parts:
            pool, old = pools[part.on_gpu], own.get(part.name)
            parameters = _parameters(part, settings, channel)
            notes += _put_back(f"{part.name}/{name}", old, parameters)
            planned = schedules if part.flow is regenerate else _kept(old)
            notes += _rescheduled(f"{part.name}/{name}", old, planned)
            client.create_deployment(
                flow_id=client.create_flow_from_name(part.name),
                name=name,
                version=_version(parameters),
                entrypoint=part.entrypoint,
                work_pool_name=pool.name,
                work_queue_name=part.queue,
                parameters=parameters,
                parameter_openapi_schema=parameter_schema(part.flow).model_dump(exclude_unset=True),
                enforce_parameter_schema=True,
                description=part.flow.description,
                schedules=planned,
                paused=old.paused if old else False,
                **_concurrency(part, old),
                tags=sorted({TAG, *(old.tags if old else ())}),
                job_variables=_merged(old.job_variables if old else {}, variables[part.on_gpu]),
                pull_steps=[{CHANGE_FOLDER: {"directory": folder}}],
            )
            rows.append(
                {"deployment": f"{part.name}/{name}", "pool": pool.name, "type": pool.type}
                | {"queue": part.queue or "default", "schedule": ", ".join(map(_shown_schedule, planned))}
            )
        notes += _without_image(pools.values(), variables, own.get("pipeline"))
        notes += before.remove({f"{part.name}/{name}" for part in parts}, name)
        # `paraclip serve` starts its workers afterwards.
        notes += [] if MARK in os.environ else _without_workers(client, pools.values())
    given = {name: value for name in ("image", "volume", "secret") if (value := getattr(target, name))}
    return Deployed(rows, {"root": root, "folder": folder, **given, "channel": channel}, notes)


def is_deployed() -> bool:
    """Whether the server has a configuration's deployments."""
    with get_client(sync_client=True) as client:
        return Existing.read(client).current


def renew() -> list[str]:
    """Remove what an earlier release left on the server; returns what was removed, and what to deploy again.

    Called by `paraclip serve` without a configuration where something is deployed already.
    """
    with get_client(sync_client=True) as client:
        existing = Existing.read(client)
        notes = existing.remove(set(), "")
        release = version("paraclip")
        names = sorted({d.name for d in existing.deployments.values() if _release(d) not in ("", release)})
        return [
            *notes,
            *(
                f"{name} was deployed by another release; `paraclip deploy -c` with its file renews it"
                for name in names
            ),
        ]


class Existing(NamedTuple):
    """The deployments with our tag that a server has, by FLOW/NAME."""

    client: SyncPrefectClient
    deployments: dict[str, DeploymentResponse]

    @classmethod
    def read(cls, client: SyncPrefectClient) -> Existing:
        """Ask the server."""
        wanted = DeploymentFilter.model_validate({"tags": {"all_": [TAG]}})
        listed: list[DeploymentResponse] = []
        while page := client.read_deployments(deployment_filter=wanted, limit=PAGE, offset=len(listed)):
            listed += page
        names = {flow: client.read_flow(flow).name for flow in {one.flow_id for one in listed}}
        ours = [one for one in listed if (one.entrypoint or "").startswith(MODULES)]
        return cls(client, {f"{names[one.flow_id]}/{one.name}": one for one in ours})

    @property
    def current(self) -> bool:
        """Whether a configuration is deployed, by this release or another one that knows configurations."""
        return any(_release(one) for one in self.deployments.values())

    def of(self, name: str) -> dict[str, DeploymentResponse]:
        """Those of one configuration, by flow."""
        pairs = ((path.partition("/"), one) for path, one in self.deployments.items())
        return {flow: one for (flow, _, run), one in pairs if run == name and _release(one)}

    def remove(self, wanted: set[str], name: str) -> list[str]:
        """Delete what an earlier release left, and what run `name` has no use for any more; says what."""
        plain, notes = [], []
        for path, one in sorted(self.deployments.items()):
            old = not _release(one)
            if path in wanted or not (old or one.name == name):
                continue
            self.client.delete_deployment(one.id)
            active = [_shown_schedule(schedule) for schedule in one.schedules if schedule.active]
            if not old:
                notes.append(f"removed {path}, which {name} has no use for")
            elif path.startswith(("regenerate/", "pipeline/")) and one.parameters:
                # A person may have edited them.
                schedule = f"; its schedule was {', '.join(active)}" if active else ""
                settings = json.dumps(one.parameters, ensure_ascii=False)
                notes.append(f"removed {path}, of an earlier release{schedule}; its parameters were {settings}")
            else:
                plain.append(path)
        return [f"removed {', '.join(plain)}, of an earlier release", *notes] if plain else notes


def _parts(settings: Settings) -> list[_Part]:
    local = Paraphraser(settings.paraphrase).facts.local
    parts = []
    for name, stage in stages_of(settings).items():
        # A stage of the user's own has no deployment. A GPU worker would only wait for a server elsewhere.
        if STAGES.get(name) is stage:
            on_gpu = stage.pool == "gpu" and (name not in STEPS or local)
            parts.append(_Part(STAGE_FLOWS[name], on_gpu, alone=name in STEPS))
    return [
        _Part(pipeline, queue=PARENTS),
        _Part(regenerate, queue=PARENTS, alone=True),
        _Part(rollback),
        *parts,
    ]


def _parameters(part: _Part, settings: Settings, channel: str) -> dict[str, Any]:
    """What the configuration's file sets, without the root, which the environment of the runs names."""
    if part.flow is rollback:
        return {"channel": channel}
    tree = settings.model_dump(mode="json", exclude_unset=True)
    tree.get("run", {}).pop("root", None)
    return {"settings": tree, **({"channel": channel} if part.flow is regenerate else {})}


def _channel(name: str, given: str | None, before: Existing) -> str:
    """The channel that this configuration's `regenerate` moves, which no other configuration's does."""
    # Of the way back, for what a person changed in the form of `regenerate` is put back.
    current = before.of(name).get("rollback")
    default = f"{DEMO}-{PRODUCTION}" if name == DEMO else PRODUCTION
    channel = given or (current.parameters.get("channel") if current else None) or default
    if channel == name:
        raise ConfigError(f"--channel {channel}: the channel of a run's own name follows every run; name another one")
    for path, one in before.deployments.items():
        taken = path.startswith("regenerate/") and one.name != name and _release(one)
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
    # What a person has paused stays so.
    return [DeploymentScheduleCreate(schedule=schedule, active=all(one.active for one in before))]


def _rescheduled(path: str, old: DeploymentResponse | None, planned: Iterable[Any]) -> list[str]:
    """What takes the place of which schedules."""
    was, now = (", ".join(map(_shown_schedule, some)) for some in (old.schedules if old else (), planned))
    return [f"{path}: schedule {was} → {now or 'none'}"] if was not in ("", now) else []


def _kept(old: DeploymentResponse | None) -> list[DeploymentScheduleCreate]:
    names = ("schedule", "active", "max_scheduled_runs", "parameters", "slug")
    return [
        DeploymentScheduleCreate(**{name: getattr(one, name) for name in names})
        for one in (old.schedules if old else ())
    ]


def _shown_schedule(one: Any) -> str:
    schedule = one.schedule
    text = getattr(schedule, "cron", None) or getattr(schedule, "rrule", None) or f"every {schedule.interval}"
    return f"{text} {schedule.timezone or 'UTC'}{'' if one.active else ' (paused)'}"


def _pools(client: SyncPrefectClient, target: Target, own: Mapping[str, DeploymentResponse]) -> dict[bool, WorkPool]:
    """The pools of runs without and with a GPU. Those of our own names are created; others have to be there."""
    was = {flow: one.work_pool_name for flow, one in own.items()}
    cpu = target.pool or was.get("pipeline") or POOLS[0]
    gpu = target.gpu_pool or target.pool or was.get("finetune") or POOLS[1]
    return {False: _pool(client, cpu), True: _pool(client, gpu)}


def _pool(client: SyncPrefectClient, name: str) -> WorkPool:
    try:
        return client.read_work_pool(name)
    except ObjectNotFound:
        pass
    if name not in POOLS:
        there = ", ".join(f"{pool.name} ({pool.type})" for pool in client.read_work_pools()) or "none"
        raise ConfigError(f"the server has no work pool {name!r}; it has {there}. Create it, or name one of these")
    # With the template in place, the workers need not write it, which two at once do badly on SQLite.
    template = ProcessWorker.get_default_base_job_template()
    # Two that set up the same server at once.
    with suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
    return client.read_work_pool(name)


def _limit_parents(client: SyncPrefectClient, pool: str) -> None:
    """Let pipelines leave places on the pool's worker for their stages; a limit that is set stays."""
    try:
        client.create_work_queue(PARENTS, concurrency_limit=PARENT_RUNS, work_pool_name=pool)
    except ObjectAlreadyExists:
        queue = client.read_work_queue_by_name(PARENTS, pool)
        if queue.concurrency_limit is None:
            client.update_work_queue(queue.id, concurrency_limit=PARENT_RUNS)


def _places(
    settings: Settings, target: Target, pools: Mapping[bool, WorkPool], old: DeploymentResponse | None
) -> tuple[str, str]:
    """Root and folder of the runs: on this machine's disk for process workers, in the container for others.

    What neither the command nor the file names stays as it is deployed.
    """
    named = settings.run.root if settings.run.root != RunOptions().root else None
    was_root, was_folder = _deployed_places(old)
    root, folder = target.root or named or was_root, target.folder or was_folder
    if all(pool.type == "process" for pool in pools.values()):
        root = root or settings.run.root
        return root if "://" in root else str(Path(root).resolve()), str(Path(folder or ".").absolute())
    root, folder = root or CONTAINER_ROOT, folder or CONTAINER_HOME
    for option, place in (("--root", root), ("--folder", folder)):
        if "://" not in place and not Path(place).is_absolute():
            raise ConfigError(
                f"{option} {place} is relative, and the runs of a {'/'.join(sorted({p.type for p in pools.values()}))} "
                f"pool work elsewhere; name a path in the container, such as {CONTAINER_ROOT}, or a URL"
            )
    return root, folder


def _deployed_places(old: DeploymentResponse | None) -> tuple[str | None, str | None]:
    if old is None:
        return None, None
    steps = [step[CHANGE_FOLDER] for step in old.pull_steps or () if CHANGE_FOLDER in step]
    return (old.job_variables.get("env") or {}).get("PARACLIP_ROOT"), steps[0]["directory"] if steps else None


def _job_variables(pool: WorkPool, target: Target, root: str) -> dict[str, Any]:
    """What the runs of a pool get, by the pool's type."""
    environment = {
        "PARACLIP_ROOT": root,
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": HEARTBEAT,
        "PREFECT_LOGGING_EXTRA_LOGGERS": ",".join(OWN_LOGGERS),
        # What a server says whose Postgres is away; by default a run that meets it crashes.
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
        # As in the stages' processes (-P), no module of a run's working folder hides another.
        "PYTHONSAFEPATH": "1",
    }
    if pages := os.environ.get(ADDRESS_VARIABLE):
        environment[ADDRESS_VARIABLE] = pages
    variables: dict[str, Any] = {"env": environment}
    if pool.type != "process" and target.image:
        variables["image"] = target.image
    if pool.type == "docker":
        volumes = [target.volume] if target.volume else []
        volumes += [f"{Path(target.secret).absolute()}:{SECRETS}:ro"] if target.secret else []
        if volumes:
            variables["volumes"] = volumes
    elif pool.type == "kubernetes":
        named = {"data_claim": target.volume, "secret": target.secret}
        variables |= {name: value for name, value in named.items() if value}
    template = (pool.base_job_template.get("variables") or {}).get("properties", {})
    if unknown := sorted(variables.keys() - template.keys() - {"env"}):
        raise ConfigError(
            f"the job template of the pool {pool.name!r} ({pool.type}) has no variable {', '.join(unknown)}; use "
            "a template of docker/kubernetes/, or leave the option out and set it in the pool's template"
        )
    return variables


def _check_used(target: Target, variables: Mapping[bool, Mapping[str, Any]]) -> None:
    for option in ("image", "volume", "secret"):
        if getattr(target, option) and all(set(given) == {"env"} for given in variables.values()):
            raise ConfigError(f"--{option} is for pools of type docker and kubernetes; process workers have none")


def _concurrency(part: _Part, old: DeploymentResponse | None) -> dict[str, Any]:
    """How many runs of a deployment work at once; a limit that a person has set stays."""
    if part.alone:
        return {"concurrency_limit": 1, "concurrency_options": ONE_AT_A_TIME}
    limit = old.global_concurrency_limit if old else None
    return {"concurrency_limit": limit.limit, "concurrency_options": old.concurrency_options} if old and limit else {}


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Ours over what a person has set for a deployment, such as a limit of memory."""
    return {**old, **new, "env": {**(old.get("env") or {}), **new["env"]}}


def _digest(parameters: Mapping[str, Any]) -> str:
    text = json.dumps(parameters, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _version(parameters: Mapping[str, Any]) -> str:
    """The version of a deployment: this release, and a digest by which a later deploy sees that a person changed it."""
    return f"paraclip-{version('paraclip')}-{_digest(parameters)}"


def _release(one: DeploymentResponse) -> str:
    """The release that made a deployment; empty for one before deployments were called after runs."""
    parts = (one.version or "").rsplit("-", 1)[0]
    return parts.removeprefix("paraclip-") if parts.startswith("paraclip-") else ""


def _put_back(path: str, old: DeploymentResponse | None, parameters: Mapping[str, Any]) -> list[str]:
    """What differs from the server's parameters, and who changed it."""
    if old is None:
        return []
    changed = not (old.version or "").endswith(f"-{_digest(old.parameters)}")
    was, now = (dict(_leaves(tree)) for tree in (old.parameters, parameters))
    differing = sorted(option for option in was.keys() | now.keys() if was.get(option, ...) != now.get(option, ...))
    # The file itself changed: said once for all of its deployments.
    if not differing or not (changed or path.startswith("pipeline/")):
        return []
    shown = [f"{one.removeprefix('settings.')} {_value(was, one)} → {_value(now, one)}" for one in differing[:SHOWN]]
    more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
    how = "was changed on the server and is set to the configuration again" if changed else "follows the configuration"
    return [f"{path} {how}: {', '.join(shown)}{more}"]


def _value(tree: Mapping[str, Any], name: str) -> str:
    return json.dumps(tree[name], ensure_ascii=False) if name in tree else "(default)"


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, Mapping) or not tree:
        yield prefix, tree
        return
    for name, value in tree.items():
        yield from _leaves(value, f"{prefix}.{name}" if prefix else str(name))


def _without_image(
    pools: Iterable[WorkPool], variables: Mapping[bool, Mapping[str, Any]], old: DeploymentResponse | None
) -> list[str]:
    """What runs in containers would lack where nobody has named it, here or at an earlier call."""
    given = {name for some in (*variables.values(), old.job_variables if old else {}) for name in some}
    docker = [pool.name for pool in pools if pool.type == "docker"]
    lacking = [f"--{option}" for option, name in (("image", "image"), ("volume", "volumes")) if name not in given]
    if not docker or not lacking:
        return []
    return [
        f"the pool {docker[0]} is given no {' and no '.join(lacking)}: its runs take the image of the pool's template, "
        f"which must hold paraclip, and {CONTAINER_HOME} ends with the container"
    ]


def _without_workers(client: SyncPrefectClient, pools: Iterable[WorkPool]) -> list[str]:
    notes = []
    for pool in {pool.name: pool for pool in pools}.values():
        workers = client.read_workers_for_work_pool(pool.name)
        if not any(getattr(worker.status, "value", worker.status) == "ONLINE" for worker in workers):
            start = f"prefect worker start --pool {pool.name} --type {pool.type}"
            notes.append(f"the pool {pool.name} has no worker, so its runs will wait: {start}")
    return notes
