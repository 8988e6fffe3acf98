"""A new user's way: a wheel in an environment of their own, and a folder of photos.

The commands do not see the repository: their environment has the wheel, and the dependencies by a path file.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "results")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment's `bin`, with the wheel that the repository builds."""
    folder = tmp_path_factory.mktemp("outside")
    shutil.copytree(REPOSITORY, folder / "source", symlinks=True, ignore=LEFT_OUT)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", "dist", "./source"]
    subprocess.run([*pip, *build], cwd=folder, check=True, capture_output=True, timeout=300)
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    (wheel,) = (folder / "dist").glob("paraclip-*.whl")
    install = ["--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *install], check=True, capture_output=True, timeout=300)
    place = next((folder / "env" / "lib").glob("python*/site-packages"))
    (place / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python.parent


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with photos, and a spreadsheet of captions under a messy header."""
    from paraclip_core.config import ScenesOptions
    from paraclip_core.scenes.render import write_scenes

    drawn = tmp_path / "drawn"
    drawn.mkdir()
    write_scenes(ScenesOptions(images=60, image_size=64), drawn)
    with tarfile.open(drawn / "images.tar") as tar:
        tar.extractall(tmp_path / "holiday" / "Photos", filter="data")
    rows = [json.loads(line) for line in (drawn / "captions.jsonl").read_text().splitlines()]
    with (tmp_path / "holiday" / "My export.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([" File-Name", "CAPTION ", "Remark"])
        writer.writerows([row["image"], row["caption"], "…"] for row in rows)
    return tmp_path


def call(environment: Path, home: Path, *arguments: str, **variables: str) -> str:
    names = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
    settings = {"PARACLIP_ROOT": str(home / "runs"), "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_XET": "1"}
    command = [str(environment / "paraclip"), *arguments]
    done = subprocess.run(
        command, cwd=home, env={**names, **settings, **variables}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


def test_a_wheel_knows_its_configurations_and_a_users_photos(environment: Path, home: Path) -> None:
    where = subprocess.run(
        [environment / "python", "-c", "import flows, storage; print(flows.__file__, storage.__file__)"],
        cwd=home, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert all(str(environment.parent) in path for path in where.stdout.split())
    shipped = json.loads(call(environment, home, "config", "show", "-c", "demo", "--json"))
    assert shipped["name"] == "demo" and shipped["data"]["scenes"] is not None
    files = list((environment.parent / "lib").glob("python*/site-packages/flows/prefect.yaml"))
    assert len(files) == 1, "what `serve` deploys"
    out = call(environment, home, "init", "holiday")
    assert "120 of 120 rows" in out and "Photos: " in out
    planned = json.loads(call(environment, home, "plan", "-c", "paraclip.yaml", "--json"))
    assert next(stage["rows"] for stage in planned["stages"] if stage["stage"] == "ingest") == 120
