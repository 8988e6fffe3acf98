"""The image and docker/compose.yaml, built, run and drilled: needs a Docker engine, its images and a package index.

The tests build on each other: what one run has made, the next ones find.
"""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.kit.composed import IMAGE, SETTINGS, Compose, composed
from tests.kit.served import ENDED, Api
from tests.kit.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.containers, pytest.mark.timeout(5400)]

GIGABYTES = 2.0
TRAINING = ("finetune.epochs=150", "finetune.checkpoint_steps=5")
"""Overrides: a minute or two of training with many checkpoints."""
SILENCE = 120
"""Seconds after which nothing that is gone may count as running."""


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    with composed(tmp_path_factory.mktemp("compose")) as services:
        yield services


def training(services: Compose, *overrides: str) -> str:
    """A run that trains and has saved a checkpoint."""
    run = services.run_deployment("pipeline", SETTINGS, *TRAINING, *overrides)
    find = ("find", "/data/root", "-path", "*/work/candidate/*/checkpoints/*", "-name", "*.safetensors")
    eventually(lambda: services.in_worker(*find), "no training", 900)
    return run


def test_the_pages_are_there_and_the_api_wants_the_password(services: Compose) -> None:
    with urllib.request.urlopen(f"{services.url}/", timeout=60) as page:
        assert "html" in page.headers["Content-Type"]
    assert services.call("admin/version")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        Api(services.url).call("admin/version")


def test_nothing_runs_as_root_or_writes_beside_its_volume(services: Compose) -> None:
    assert services.in_worker("id", "-u") == "1000"
    assert services.in_worker("stat", "-c", "%U", "/data") == "paraclip"
    assert "Read-only file system" in services.in_worker("touch", "/app/x", code=1)
    (capabilities,) = [line for line in services.in_worker("cat", "/proc/1/status").splitlines() if "CapEff" in line]
    assert int(capabilities.split()[1], 16) == 0


def test_the_image_is_small(services: Compose) -> None:
    size = subprocess.run(["docker", "image", "inspect", "-f", "{{.Size}}", IMAGE], capture_output=True, check=True)
    assert int(size.stdout) < GIGABYTES * 1e9


def test_a_run_ends_well_and_outlives_its_containers(services: Compose) -> None:
    services.complete(services.run_deployment("pipeline", SETTINGS))
    services.compose("down")
    services.up()
    services.complete(services.run_deployment("pipeline", SETTINGS), 300)
    log = services.log()
    assert "starts in process" not in log and " made in " not in log, "what was finished was made again"


@pytest.mark.parametrize("name", ["postgres-1", "server-1"])
def test_a_training_outlives_what_keeps_the_books(
    services: Compose, name: str, record_property: Callable[[str, object], None]
) -> None:
    run = training(services, f"finetune.seed={len(name)}")
    services.crash(name)
    start = time.monotonic()
    eventually(services.answers, "the API did not come back", 120)
    record_property(f"{name}: seconds until the API answers", round(time.monotonic() - start))
    services.complete(run)
    assert services.call(f"flow_runs/{run}")["run_count"] == 1


@pytest.mark.parametrize("how", ["a killed worker", "an upgrade under load"])
def test_a_cut_off_run_is_crashed_and_its_retry_goes_on(
    services: Compose, how: str, record_property: Callable[[str, object], None]
) -> None:
    run = training(services, f"finetune.seed={len(how)}")
    if how == "a killed worker":
        services.crash("worker-cpu-1")
    else:
        services.compose("down")
        services.up()
    record_property(f"{how}: seconds until the run is Crashed", round(services.until(run, ENDED, SILENCE)))
    assert services.state(run) == "Crashed"
    services.retry(run)
    services.complete(run)
    starts = [line for line in services.log().splitlines() if "paraclip.tasks.run.execute - finetune " in line]
    assert starts[-1].endswith("goes on"), "the training began anew"


def test_fifty_pipelines_at_once(services: Compose, record_property: Callable[[str, object], None]) -> None:
    """Submitted without a second try; the pages' requests are answered all the while."""
    start = time.monotonic()
    with ThreadPoolExecutor(10) as pool:
        runs = list(pool.map(lambda _: services.run_deployment("pipeline", SETTINGS), range(50)))
    record_property("fifty: seconds to submit", round(time.monotonic() - start))
    wanted = {"flow_runs": {"id": {"any_": runs}}, "limit": 50}
    most = 0
    while len(ended := states(services, wanted)) < 50 or not set(ended) <= set(ENDED):
        most = max(most, ended.count("Running"))
        assert time.monotonic() - start < 1800, ended
        time.sleep(1)
    record_property("fifty: seconds to the last end", round(time.monotonic() - start))
    record_property("fifty: most at once", most)
    assert ended == ["Completed"] * 50
    assert " 503 " not in services.compose("logs", "--no-color", "server")
    assert 1 < most <= 6, "the limit of the queue"


def states(services: Compose, wanted: dict[str, object]) -> list[str]:
    return [run["state"]["name"] for run in services.call("flow_runs/filter", wanted, patience=())]


def test_another_password_counts_from_the_next_start(services: Compose) -> None:
    services.password = "Secret_2-y"
    services.up()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        services.call("admin/version")
    services.log_in(f"admin:{services.password}")
    services.complete(services.run_deployment("pipeline", SETTINGS), 300)


def test_a_changed_password_of_the_database_is_said_in_words(services: Compose) -> None:
    services.environment["PARACLIP_DATABASE_PASSWORD"] = "another"
    with pytest.raises(AssertionError, match="database postgres:5432 refuses the password") as error:
        services.up()
    assert "set PARACLIP_DATABASE_PASSWORD" in str(error.value)
    del services.environment["PARACLIP_DATABASE_PASSWORD"]
    services.up()
    assert services.call("admin/version")
