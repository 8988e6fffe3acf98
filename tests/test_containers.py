"""What can be said of the container files without an engine; tests/e2e/test_compose.py builds and runs them."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from alembic.util import CommandError
from asyncpg.exceptions import InvalidPasswordError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from prefect.settings import Settings

from paraclip.storage.roots import working_folder
from paraclip_core.paraphrase.engines.openai import OpenAIOptions

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
def test_pages_and_caches_lie_where_the_image_s_user_may_write() -> None:
    (folder,), (mount,) = COMPOSE["x-paraclip"]["tmpfs"], COMPOSE["x-paraclip"]["volumes"]
    pages = Settings().server.ui.static_directory
    assert pages is not None and pages.startswith(f"{folder}/")
    assert str(working_folder("s3://bucket/root")).startswith(mount.removeprefix("data:") + "/")


def test_what_the_files_must_say() -> None:
    (with_vllm,) = re.findall(r'if \[ -n "\$\{VLLM\}" \](.*?)fi$', DOCKERFILE, re.DOTALL | re.MULTILINE)
    assert re.search(r"apt-get install .*\bgcc libc6-dev\b", with_vllm), "Triton compiles"
    assert COMPOSE["name"] == "paraclip", "another project in a folder `docker` would share its volumes"
    check = COMPOSE["services"]["postgres"]["healthcheck"]["test"]
    assert check[:4] == ["CMD", "pg_isready", "-h", "localhost"], "Postgres answers on its Unix socket too early"
    assert COMPOSE["x-paraclip"]["init"] is True, "a killed run's processes would be zombies"


def test_a_key_is_mounted_where_the_engine_reads_it_and_none_is_no_error() -> None:
    name = OpenAIOptions().api_key_env
    for worker in ("worker-cpu", "worker-gpu"):
        assert COMPOSE["services"][worker]["secrets"] == [name] and COMPOSE["services"][worker]["read_only"]
    # Compose puts no other secret than a file's into a read-only container, and starts none whose file is not there.
    assert COMPOSE["secrets"] == {name: {"file": "${OPENAI_API_KEY_FILE:-/dev/null}"}}


def locked(path: Path) -> dict[str, str]:
    """Versions by name, as a lock has them."""
    pins = re.findall(r"^([A-Za-z0-9_.-]+)==([^ \n]+)", path.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


def test_the_image_s_locks_hold_what_the_project_needs_at_its_versions_with_hashes() -> None:
    files = sorted((REPOSITORY / "docker").glob("requirements*.txt"))
    assert len(files) == 2
    for file in files:
        for requirement in re.split(r"\n(?=\S)", file.read_text().strip()):
            assert "--hash=sha256:" in requirement, requirement
    image = {name: version for file in files for name, version in locked(file).items()}
    everywhere = locked(REPOSITORY / "requirements.lock")
    assert not {name for name, version in image.items() if everywhere.get(name, version) != version}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["demo"], *extras["s3"]]
    absent = [
        need for need in map(Requirement, needed) if image.get(canonicalize_name(need.name), "0") not in need.specifier
    ]
    assert not absent, "run docker/lock.sh"


def loaded(name: str) -> ModuleType:
    """A script of the folder `docker` as a module."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "docker" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (InvalidPasswordError("password authentication failed"), "refuses the password.*PARACLIP_DATABASE_PASSWORD"),
        (CommandError("Can't locate revision identified by 'x'"), "a newer Prefect.*use the newer image"),
        (ConnectionRefusedError(111, "refused"), "cannot be reached"),
        (ValueError("something else"), None),
    ],
)
def test_what_keeps_a_server_from_its_database_is_said_in_words(error: Exception, text: str | None) -> None:
    outer = RuntimeError("of another library")
    outer.__cause__ = error
    words = loaded("database").words(outer, "postgresql+asyncpg://prefect:secret@postgres:5432/prefect")
    assert words is None if text is None else re.search(text, words, re.DOTALL)
    assert "secret" not in (words or "")


def test_no_page_of_another_origin_may_ask_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one of compose nor of the units in the guide."""
    (units,) = re.findall(
        r"> /etc/paraclip.env <<END\n(.+?)\nEND", (REPOSITORY / "docs" / "deployment.md").read_text(), re.DOTALL
    )
    for variables in (
        COMPOSE["x-server"],
        dict(line.split("=", 1) for line in units.splitlines()),
    ):
        with monkeypatch.context() as patch:
            for name in ("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "PREFECT_SERVER_CSRF_PROTECTION_ENABLED"):
                patch.setenv(name, variables[name])
            api = Settings().server.api
        assert api.csrf_protection_enabled and re.fullmatch(r"https?://[\w.]+(:\d+)?", api.cors_allowed_origins)
