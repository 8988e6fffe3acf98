"""A new user's way: a wheel in an environment of their own, a folder of photos, and the tuned model in other software.

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

from tests.kit.search_home import release

REPOSITORY = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "results")
SMALL = (
    "finetune.epochs=2", "finetune.batch_size=8", "finetune.precision=fp32", "run.threads=1",
)  # fmt: skip


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
    from paraclip_core.demo.render import write_scenes

    drawn = tmp_path / "drawn"
    write_scenes(drawn, images=60, side=64)
    with tarfile.open(drawn / "images.tar") as tar:
        tar.extractall(tmp_path / "holiday" / "Photos", filter="data")
    rows = [json.loads(line) for line in (drawn / "captions.jsonl").read_text().splitlines()]
    with (tmp_path / "holiday" / "My export.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([" File-Name", "CAPTION ", "Remark"])
        # Each caption once, or validation would share most of them with training.
        writer.writerows([row["image"], f"{row['caption']} {number}", "…"] for number, row in enumerate(rows))
    return tmp_path


OWN_FILES = {
    "flows.py": "raise RuntimeError('a file of the user')",
    "storage.py": "raise RuntimeError('a file of the user')",
    "tasks.py": "PHRASE = 'there is'",
    "my_parts.py": """
import tasks
from paraclip_core.paraphrase.engines import Completion, EngineFacts

class Engine:
    name, model, facts = "mine", "1", EngineFacts(shares_cores=True)
    def __init__(self, options, context): pass
    def generate(self, prompts, sampling): return [Completion((f"{tasks.PHRASE} {one.text}",), 1, 1) for one in prompts]
    def close(self): pass

def gate(pair, options):
    return None if pair.answer.startswith(tasks.PHRASE) else "other"
""",
}
"""What a user has beside a notebook: files with the names of our folders, of which their engine needs one."""


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
        [environment / "python", "-c", "import paraclip.flows as a, paraclip_core as b; print(a.__file__, b.__file__)"],
        cwd=home, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert all(str(environment.parent) in path for path in where.stdout.split())
    (names,) = (environment.parent / "lib").glob("python*/site-packages/paraclip-*.dist-info/top_level.txt")
    assert names.read_text().split() == ["paraclip", "paraclip_core"]
    shipped = json.loads(call(environment, home, "config", "show", "-c", "demo", "--json"))
    assert shipped["name"] == "demo" and shipped["data"]["root"] == "runs/demo-data"
    out = call(environment, home, "init", "holiday")
    assert "accepted: 120\n" in out and "images: Photos\n" in out


PARAPHRASE_IN_PYTHON = """
import paraclip, tasks, sys
(row,) = paraclip.paraphrase(["a dog"], paraclip.load_config(sys.argv[1], sys.argv[2:]))
assert row["paraphrase_1"].startswith(tasks.PHRASE), row
"""


@pytest.mark.nightly
def test_from_photos_to_other_software(environment: Path, home: Path) -> None:
    """By an engine of the user's own, in commands, stages' processes and Python."""
    for name, text in OWN_FILES.items():
        (home / name).write_text(text)
    release(home / "base", 0.0)
    path = {"PYTHONPATH": str(home)}
    call(environment, home, "init", "holiday", "--base", "local-dir:base", "--name", "trip")
    engine = {"engine": "my_parts:Engine", "prompts": "paper", "filters": {"preset": "off", "extra": ["my_parts:gate"]}}
    sets = [f"paraphrase={json.dumps(engine)}", *SMALL]
    options = ["-c", "paraclip.yaml", *(part for each in sets for part in ("--set", each))]
    assert json.loads(call(environment, home, "plan", *options, "--json", **path))["stages"]
    outcome = json.loads(call(environment, home, "run", *options, "--json", **path))
    assert outcome["verdict"] in ("promote", "hold")
    run = [environment / "python", "-c", PARAPHRASE_IN_PYTHON, "paraclip.yaml", *sets]
    variables = {**os.environ, **path, "PARACLIP_ROOT": str(home / "runs")}
    subprocess.run(run, cwd=home, env=variables, check=True, timeout=300)

    for layout in ("open_clip", "onnx", "hf"):
        call(environment, home, "export", "trip", layout, "--format", layout, "--dataset", "me/words")
    call(environment, home, "export-dataset", "words", *options, **path)
    assert "datasets:\n- me/words" in (home / "open_clip" / "README.md").read_text()
    assert (home / "words" / "README.md").is_file() and (home / "words" / "data" / "train.parquet").is_file()
    assert (home / "onnx" / "text_model.onnx").is_file() and (home / "hf" / "model.safetensors").is_file()
