"""What the parts of Prefect that are ours share: the tag, pools, variables and heartbeat."""

from __future__ import annotations

OWN_LOGGERS = ("paraclip", "paraclip_core")
POOLS = ("paraclip-cpu", "paraclip-gpu")
CPU_RUNS = 8
"""How many flow runs the CPU worker carries out at once; the GPU worker one, for two would share its memory."""
TAG = "paraclip"
"""Tag of every deployment and so of its runs; automations touch no others."""
RUNS, OURS = {"prefect.resource.id": "prefect.flow-run.*"}, {"prefect.resource.id": f"prefect.tag.{TAG}"}
"""What automations match: flow runs, and what is related to this tag."""
HEARTBEAT = "30"
"""Seconds between the heartbeats of a flow run."""
UNWATCHED = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": HEARTBEAT,
}
"""Environment of every Prefect process that is ours."""
HOST = "127.0.0.1"
"""Where the servers that we start listen."""
PASSWORD_VARIABLE = "PREFECT_API_AUTH_STRING"
"""What Prefect's own clients send to a server that has a password."""
SERVER_PASSWORD_VARIABLE = "PREFECT_SERVER_API_AUTH_STRING"
ADDRESS_VARIABLE = "PARACLIP_PAGES"
"""Where the folder `results` is served; runs link to it."""
MARK = "PARACLIP_STACK"
"""Environment variable with the root, of all that `serve` has started."""
