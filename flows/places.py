"""Where the runs of a configuration work: pools, root and folder, and the job variables that say so."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.workers.process import ProcessWorker

from paraclip.flows.names import CPU_RUNS, HEARTBEAT, OWN_LOGGERS, POOLS
from paraclip_core.config import RunOptions, Settings
from paraclip_core.errors import ConfigError

PARENTS = "pipelines"
"""Queue in the CPU pool for flows that may wait for stages in that pool; those stages must find room there."""
PARENT_RUNS = CPU_RUNS * 3 // 4
CONTAINER_HOME, CONTAINER_ROOT = "/data", "/data/root"
"""Where relative paths start, and the root, in the image of docker/Dockerfile."""
SECRETS = "/run/secrets"
"""Where a container finds secret files, each named like the variable that it replaces."""
CHANGE_FOLDER = "prefect.deployments.steps.set_working_directory"


@dataclass(frozen=True)
class Target:
    """Where the flow runs of a configuration work. A field that is None keeps what is deployed, or is the default."""

    pool: str | None = None
    """Work pool of pipelines and stages that need no GPU."""
    gpu_pool: str | None = None
    image: str | None = None
    """Container image, for pools whose runs work in containers."""
    volume: str | None = None
    """`HOST:/data`, for docker pools."""
    secret: str | None = None
    """Folder of secret files on the docker host."""
    root: str | None = None
    folder: str | None = None
    """Where relative paths in the settings start."""


class Place(NamedTuple):
    """Where the runs of a configuration work, once the server has the pools."""

    pools: dict[bool, WorkPool]
    """Work pools of runs without and with a GPU."""
    variables: dict[bool, dict[str, Any]]
    """Job variables of runs without and with a GPU."""
    root: str
    folder: str

    @classmethod
    def find(
        cls, client: SyncPrefectClient, settings: Settings, target: Target, own: Mapping[str, DeploymentResponse]
    ) -> Place:
        """The place that `target` names; the rest comes from `own`, the current deployments by flow."""
        was = {flow: deployment.work_pool_name for flow, deployment in own.items()}
        cpu = target.pool or was.get("pipeline") or POOLS[0]
        gpu = target.gpu_pool or target.pool or was.get("finetune") or POOLS[1]
        pools = {False: _pool(client, cpu), True: _pool(client, gpu)}
        root, folder = _places(settings, target, pools, own.get("pipeline") if target.pool is None else None)
        containers = {pool.type for pool in pools.values()} - {"process"}
        if target.image and not containers:
            raise ConfigError("--image is for pools whose runs work in containers; process workers have none")
        if (target.volume or target.secret) and containers != {"docker"}:
            raise ConfigError(
                "--volume and --secret are for docker pools only; in others the pool's template mounts them"
            )
        variables = {on_gpu: _job_variables(pool, target, root) for on_gpu, pool in pools.items()}
        return cls(pools, variables, root, folder)

    def limit_parents(self, client: SyncPrefectClient) -> None:
        """Limit pipelines, so that the pool's worker has room for their stages; a limit that is set stays."""
        pool = self.pools[False].name
        try:
            client.create_work_queue(PARENTS, concurrency_limit=PARENT_RUNS, work_pool_name=pool)
        except ObjectAlreadyExists:
            queue = client.read_work_queue_by_name(PARENTS, pool)
            if queue.concurrency_limit is None:
                client.update_work_queue(queue.id, concurrency_limit=PARENT_RUNS)

    def without_image(self, old: DeploymentResponse | None) -> list[str]:
        """Notes on what runs in containers lack because neither this call nor an earlier one named it."""
        given = {name for values in (*self.variables.values(), old.job_variables if old else {}) for name in values}
        docker = [pool.name for pool in self.pools.values() if pool.type == "docker"]
        lacking = [f"--{option}" for option, name in (("image", "image"), ("volume", "volumes")) if name not in given]
        if not docker or not lacking:
            return []
        return [
            f"the pool {docker[0]} is given no {' and no '.join(lacking)}: its runs take the image of the pool's "
            f"template, which must hold paraclip, and {CONTAINER_HOME} ends with the container"
        ]

    def without_workers(self, client: SyncPrefectClient) -> list[str]:
        """Notes on the pools that no worker takes runs from."""
        notes = []
        for pool in {pool.name: pool for pool in self.pools.values()}.values():
            workers = client.read_workers_for_work_pool(pool.name)
            if not any(getattr(worker.status, "value", worker.status) == "ONLINE" for worker in workers):
                start = f"prefect worker start --pool {pool.name} --type {pool.type}"
                notes.append(f"the pool {pool.name} has no worker, so its runs will wait: {start}")
        return notes


def _pool(client: SyncPrefectClient, name: str) -> WorkPool:
    """A pool of the server. Pools with our own names are created; others must exist."""
    try:
        return client.read_work_pool(name)
    except ObjectNotFound:
        pass
    if name not in POOLS:
        pools = ", ".join(f"{pool.name} ({pool.type})" for pool in client.read_work_pools()) or "none"
        raise ConfigError(f"the server has no work pool {name!r}; it has {pools}. Create it, or name one of these")
    # With the template in place, the workers need not write it, which two at once do badly on SQLite.
    template = ProcessWorker.get_default_base_job_template()
    # Two processes set up the same server at once.
    with suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
    return client.read_work_pool(name)


def _places(
    settings: Settings, target: Target, pools: Mapping[bool, WorkPool], old: DeploymentResponse | None
) -> tuple[str, str]:
    """Root and folder of the runs: on this machine's disk for process workers, in the container for others.

    What neither the command nor the file names stays as it is deployed.
    """
    named = settings.run.root if settings.run.root != RunOptions().root else None
    was_root = was_folder = None
    if old is not None:
        was_root = (old.job_variables.get("env") or {}).get("PARACLIP_ROOT")
        was_folder = next(
            (step[CHANGE_FOLDER]["directory"] for step in old.pull_steps or () if CHANGE_FOLDER in step), None
        )
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


def _job_variables(pool: WorkPool, target: Target, root: str) -> dict[str, Any]:
    """Job variables of a pool's runs, by the pool's type."""
    environment = {
        "PARACLIP_ROOT": root,
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": HEARTBEAT,
        "PREFECT_LOGGING_EXTRA_LOGGERS": ",".join(OWN_LOGGERS),
        # A server answers this while its Postgres is away; by default, a run that gets it crashes.
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
        # As in the stages' processes (-P), no module of a run's working folder hides another.
        "PYTHONSAFEPATH": "1",
    }
    variables: dict[str, Any] = {"env": environment}
    if pool.type != "process" and target.image:
        variables["image"] = target.image
    if pool.type == "docker":
        volumes = [target.volume] if target.volume else []
        volumes += [f"{Path(target.secret).absolute()}:{SECRETS}:ro"] if target.secret else []
        if volumes:
            variables["volumes"] = volumes
    template = (pool.base_job_template.get("variables") or {}).get("properties", {})
    if unknown := sorted(variables.keys() - template.keys() - {"env"}):
        raise ConfigError(
            f"the job template of the pool {pool.name!r} ({pool.type}) has no variable {', '.join(unknown)}; "
            "leave the option out and set it in the pool's template"
        )
    return variables
