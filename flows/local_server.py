"""A Prefect server for one run, which ends with it however it ends.

Prefect's own temporary server shares its starter's process group, so Ctrl-C ends it first and the run then waits for
it for minutes; and if its starter is killed, it stays for ever. This one has a session of its own and ends with its
starter. Its database lies in a temporary folder, so that runs side by side do not share it.
"""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from paraclip_core.errors import StageError
from paraclip_core.lifetime import TempDir, die_with
from paraclip_core.paths import PACKAGES

HOST = "127.0.0.1"
START_SECONDS = 180.0
LOG = "server.log"
# It serves one run, which has no use for a UI and for blocks; making those known takes a second.
OWN = {
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT__SERVER_EPHEMERAL": "1",
}


def start_local_server(environment: Mapping[str, str]) -> dict[str, str]:
    """Start the server and return the environment in which a client finds it. It ends when this process ends.

    Call it before prefect is imported: what is registered first for the end of a process runs last.
    """
    temp_dir = TempDir("prefect-")
    home = temp_dir.path
    port = _free_port()
    # Every page that a browser shows, and every user of this machine, reaches the port.
    password = f"admin:{secrets.token_hex(16)}"
    mine = {
        **OWN,
        "PREFECT_SERVER_API_AUTH_STRING": password,
        "PREFECT_HOME": str(home),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH")])),
    }
    with (home / LOG).open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", "paraclip.flows.local_server", str(os.getpid()), str(port)],
            env={**os.environ, **environment, **mine},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    atexit.register(_end, server, temp_dir)
    _wait(server, f"http://{HOST}:{port}/api/health", home / LOG)
    url = f"http://{HOST}:{port}/api"
    return {"PREFECT_HOME": str(home), "PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": password}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < end:
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.1)
    code = server.poll()
    why = f"ended with exit code {code}"
    if code is None:
        why = (
            f"did not answer within {START_SECONDS:g} seconds; is the machine busy? Run again, or set PREFECT_API_URL "
            "to a server that runs"
        )
    # Where there is no room for its database, there is none for its log.
    nothing = f"(nothing; is there room in {log.parent.parent}? TMPDIR chooses another folder)"
    lines = log.read_text(errors="replace").splitlines()[-10:]
    raise StageError(f"Prefect's temporary server {why}. End of its log:\n" + ("\n".join(lines) or nothing))


def _end(server: subprocess.Popen[bytes], temp_dir: TempDir) -> None:
    server.terminate()
    try:
        server.wait(5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    temp_dir.remove()


def _main() -> None:
    die_with(int(sys.argv[1]))
    # Imported here, for the line above must come first.
    import uvicorn

    application = "prefect.server.api.server:create_app"
    uvicorn.run(application, factory=True, host=HOST, port=int(sys.argv[2]), log_level="error", lifespan="on")


if __name__ == "__main__":
    _main()
