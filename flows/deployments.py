"""Our deployments on a server."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, NamedTuple

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter
from prefect.client.schemas.responses import DeploymentResponse

from paraclip.flows.automations import PAGE
from paraclip.flows.names import TAG

MODULES = "paraclip.flows."
"""Prefix of the entry points of our deployments."""
RELEASE = f"paraclip-{version('paraclip')}"
"""The version of every deployment that this release makes."""


class Existing(NamedTuple):
    """The deployments with our tag on a server, by FLOW/NAME."""

    client: SyncPrefectClient
    deployments: dict[str, DeploymentResponse]

    @classmethod
    def read(cls, client: SyncPrefectClient) -> Existing:
        """Read them from the server."""
        wanted = DeploymentFilter.model_validate({"tags": {"all_": [TAG]}})
        listed: list[DeploymentResponse] = []
        while page := client.read_deployments(deployment_filter=wanted, limit=PAGE, offset=len(listed)):
            listed += page
        ours = [deployment for deployment in listed if (deployment.entrypoint or "").startswith(MODULES)]
        names = {flow: client.read_flow(flow).name for flow in {deployment.flow_id for deployment in ours}}
        return cls(client, {f"{names[deployment.flow_id]}/{deployment.name}": deployment for deployment in ours})

    def configurations(self) -> set[str]:
        """The names of the runs whose configurations are deployed."""
        return {deployment.name for deployment in self.deployments.values()}

    def of(self, name: str) -> dict[str, DeploymentResponse]:
        """The deployments of one configuration, by flow."""
        pairs = ((path.partition("/"), deployment) for path, deployment in self.deployments.items())
        return {flow: deployment for (flow, _, run), deployment in pairs if run == name}

    def remove_others(self, wanted: set[str], name: str) -> list[str]:
        """Delete what run `name` no longer needs, which is all but `wanted`; returns a note on each."""
        paths = {f"{flow}/{name}": deployment for flow, deployment in self.of(name).items()}
        unneeded = sorted(paths.keys() - wanted)
        for path in unneeded:
            self.client.delete_deployment(paths[path].id)
        return [f"removed {path}, which {name} does not need" for path in unneeded]

    def of_other_releases(self) -> list[str]:
        """A note on each configuration that another release has deployed."""
        names = {deployment.name for deployment in self.deployments.values() if deployment.version != RELEASE}
        mend = "`paraclip deploy -c` with its file renews it"
        return [f"{name} was deployed by another release; {mend}" for name in sorted(names)]


def shown_schedule(deployed: Any) -> str:
    """A schedule, in a few words."""
    schedule = deployed.schedule
    text = getattr(schedule, "cron", None) or getattr(schedule, "rrule", None) or f"every {schedule.interval}"
    return f"{text} {schedule.timezone or 'UTC'}{'' if deployed.active else ' (paused)'}"
