"""How long a deployment's run takes that has nothing to do: from its submission until it is `Completed`.

    python benchmarks/noop_run.py [--repeat 5]

A local stack is served over a root in which every stage of the demo is finished, and `pipeline` is submitted `--repeat`
times, one after the other. The median counts; its target is 5 seconds on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from record import record

from paraclip.flows.local_stack import client_environment, serve, stop
from paraclip.storage.parquet import write_table
from paraclip.storage.roots import open_store
from paraclip.tasks.run.run import Run
from paraclip_core import tables
from paraclip_core.settings import load_settings

REPOSITORY = Path(__file__).parents[1]
TARGET_SECONDS = 5.0
SUMMARY = {"models": {"base": {}, "tuned": {}}, "verdict": "hold", "reason": "nothing was measured", "fingerprints": {}}


def finish(root: Path) -> dict[str, Any]:
    """Settings of a run under `root` whose every stage is finished, without any of the work."""
    settings = load_settings(REPOSITORY / "configs" / "demo.yaml", [f"run.root={root}"])
    run = Run(settings, open_store(str(root)))
    for name, node in run.nodes.items():
        with run.store.writing(name, node.fingerprint) as work:
            (work.out / "summary.json").write_text(json.dumps(SUMMARY))
            (work.out / "report.html").write_text("<title>nothing</title>")
            write_table(work.out / "captions" / "part-000000-00000.parquet", tables.CAPTIONS.empty_table())
            run.store.commit(node.draft, {"rows": 1, "alpha": 1.0}, 0.0)
    return settings.model_dump(mode="json")


def seconds(client: Any, settings: dict[str, Any]) -> float:
    """One run, from its submission to its end."""
    deployment = client.read_deployment_by_name("pipeline/pipeline").id
    began = time.monotonic()
    run = client.create_flow_run_from_deployment(deployment, parameters={"settings": settings}).id
    while not (state := client.read_flow_run(run).state).is_final():
        time.sleep(0.05)
    took = time.monotonic() - began
    if not state.is_completed():
        raise SystemExit(f"the run is {state.name}: {state.message}")
    return took


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        root = Path(folder) / "root"
        settings = finish(root)
        try:
            serve(root, port, Path(folder), REPOSITORY / "prefect.yaml")
            os.environ.update(client_environment(root))
            # Imported here, for it reads the environment.
            from prefect import get_client

            with get_client(sync_client=True) as client:
                runs = [seconds(client, settings) for _ in range(repeat)]
        finally:
            with suppress(KeyboardInterrupt):
                stop(root)
    print("seconds:", ", ".join(f"{took:.2f}" for took in runs))
    median = statistics.median(runs)
    record("noop_run", median, "s", f"{TARGET_SECONDS:g} s", TARGET_SECONDS / median, 1.0)


if __name__ == "__main__":
    main()
