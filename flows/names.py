"""Names that our deployments, workers and automations share: tag, pools, variables and heartbeat."""

from __future__ import annotations

OWN_LOGGERS = ("paraclip", "paraclip_core")
POOLS = ("paraclip-cpu", "paraclip-gpu")
CPU_RUNS = 8
"""Flow runs that the CPU worker runs at once; the GPU worker runs one, because two would share its memory."""
TAG = "paraclip"
"""Tag of all our deployments and so of their runs; automations touch no others."""
HEARTBEAT = "30"
"""Seconds between the heartbeats of a flow run."""
UNWATCHED = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": HEARTBEAT,
}
"""Environment of every Prefect process that we start."""
HOST = "127.0.0.1"
"""Address that our servers listen on."""
PASSWORD_VARIABLE = "PREFECT_API_AUTH_STRING"
"""Variable with the password that Prefect's clients send to a server."""
SERVER_PASSWORD_VARIABLE = "PREFECT_SERVER_API_AUTH_STRING"
