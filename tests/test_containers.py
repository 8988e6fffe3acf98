"""What can be said of the container files without an engine; tests/e2e/test_compose.py builds and runs them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from prefect.settings import Settings

from storage.roots import working_folder

REPOSITORY = Path(__file__).parents[1]
DOCKERFILE = (REPOSITORY / "docker" / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((REPOSITORY / "docker" / "compose.yaml").read_text())


@pytest.fixture
def image_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in re.findall(r"^(?:ENV|   ) ([A-Z_]+)=(\S+)", DOCKERFILE, re.MULTILINE):
        monkeypatch.setenv(name, value)


def patterns(name: str) -> set[str]:
    """The names in a file of patterns, without the places where they count."""
    lines = (REPOSITORY / name).read_text().splitlines()
    return {line.removeprefix("**/").strip("/") for line in lines if line and not line.startswith("#")}


def test_what_git_ignores_stays_out_of_the_image() -> None:
    assert patterns(".gitignore") | {".git"} <= patterns(".dockerignore")


@pytest.mark.usefixtures("image_environment")
def test_the_servers_pages_lie_where_its_user_may_write() -> None:
    pages = Settings().server.ui.static_directory
    assert pages is not None and pages.startswith("/home/paraclip/") and "useradd --create-home" in DOCKERFILE


@pytest.mark.usefixtures("image_environment")
def test_caches_lie_on_the_volume() -> None:
    (mount,) = COMPOSE["x-paraclip"]["volumes"]
    assert str(working_folder("s3://bucket/root")).startswith(mount.removeprefix("data:") + "/")


def test_the_gpu_image_can_compile_what_triton_needs() -> None:
    (with_vllm,) = re.findall(r'if \[ -n "\$\{VLLM\}" \](.*?)fi$', DOCKERFILE, re.DOTALL | re.MULTILINE)
    assert re.search(r"apt-get install .*\bgcc libc6-dev\b", with_vllm)


def test_another_projects_volumes_are_not_shared() -> None:
    # Without a name it is the folder's, `docker`.
    assert COMPOSE["name"] == "paraclip"


def test_the_server_waits_for_a_database_that_it_can_reach() -> None:
    # While Postgres makes its database, it answers on its Unix socket only.
    check = COMPOSE["services"]["postgres"]["healthcheck"]["test"]
    assert check[:4] == ["CMD", "pg_isready", "-h", "localhost"]


def test_a_killed_runs_processes_are_not_left_as_zombies() -> None:
    assert COMPOSE["x-paraclip"]["init"] is True


def test_a_change_of_the_source_repeats_no_download() -> None:
    steps = re.findall(r"^(?:COPY|RUN) (.+(?:\\\n.+)*)", DOCKERFILE, re.MULTILINE)
    needed, needs, source, itself = (
        next(number for number, step in enumerate(steps) if text in step)
        for text in ("pyproject.toml", '".[${EXTRAS}]"', ". .", "--no-deps -e .")
    )
    assert needed < needs < source < itself
