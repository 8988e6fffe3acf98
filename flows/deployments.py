"""Our deployments on a server, those of earlier releases included."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any, NamedTuple

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter
from prefect.client.schemas.responses import DeploymentResponse

from paraclip.flows.automations import PAGE
from paraclip.flows.names import TAG

MODULES = ("paraclip.flows.", "flows.")
"""Prefixes of the entry points of our deployments, those of earlier releases included."""


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
        names = {flow: client.read_flow(flow).name for flow in {one.flow_id for one in listed}}
        ours = [one for one in listed if (one.entrypoint or "").startswith(MODULES)]
        return cls(client, {f"{names[one.flow_id]}/{one.name}": one for one in ours})

    @property
    def current(self) -> bool:
        """Whether a configuration is deployed, by this release or another one that knows configurations."""
        return bool(self.configurations())

    def configurations(self) -> set[str]:
        """The names of the runs whose configurations are deployed."""
        return {one.name for one in self.deployments.values() if release_of(one)}

    def of(self, name: str) -> dict[str, DeploymentResponse]:
        """The deployments of one configuration, by flow."""
        pairs = ((path.partition("/"), one) for path, one in self.deployments.items())
        return {flow: one for (flow, _, run), one in pairs if run == name and release_of(one)}

    def remove(self, wanted: set[str], name: str) -> list[str]:
        """Delete what an earlier release left and what run `name` no longer needs; returns a note on each."""
        plain, notes = [], []
        for path, one in sorted(self.deployments.items()):
            old = not release_of(one)
            if path in wanted or not (old or one.name == name):
                continue
            self.client.delete_deployment(one.id)
            active = [shown_schedule(schedule) for schedule in one.schedules if schedule.active]
            if not old:
                notes.append(f"removed {path}, which {name} does not need")
            elif path.startswith(("regenerate/", "pipeline/")) and one.parameters:
                # A person may have edited them.
                schedule = f"; its schedule was {', '.join(active)}" if active else ""
                settings = json.dumps(one.parameters, ensure_ascii=False)
                notes.append(f"removed {path} from an earlier release{schedule}; its parameters were {settings}")
            else:
                plain.append(path)
        return [f"removed {', '.join(plain)} from an earlier release", *notes] if plain else notes


def renew(existing: Existing) -> list[str]:
    """Remove what an earlier release left on the server; returns what was removed, and what to deploy again.

    `paraclip serve` without a configuration calls it if something is deployed already.
    """
    notes, release = existing.remove(set(), ""), version("paraclip")
    names = sorted({one.name for one in existing.deployments.values() if release_of(one) not in ("", release)})
    return [
        *notes,
        *(f"{name} was deployed by another release; `paraclip deploy -c` with its file renews it" for name in names),
    ]


def release_of(one: DeploymentResponse) -> str:
    """The release that made a deployment; empty for one from before deployments were named after runs."""
    parts = (one.version or "").rsplit("-", 1)[0]
    return parts.removeprefix("paraclip-") if parts.startswith("paraclip-") else ""


def shown_schedule(one: Any) -> str:
    """A schedule, in a few words."""
    schedule = one.schedule
    text = getattr(schedule, "cron", None) or getattr(schedule, "rrule", None) or f"every {schedule.interval}"
    return f"{text} {schedule.timezone or 'UTC'}{'' if one.active else ' (paused)'}"
