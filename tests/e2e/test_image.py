"""The image, built, and one pipeline in it: the short form of `make test-containers`, wherever an engine is at hand."""

from __future__ import annotations

import subprocess

import pytest
from composed import IMAGE, REPOSITORY, need_engine

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.containers]

ARGUMENTS = ["--build-arg", "PYTHON", "--build-arg", "TORCH_INDEX"]
# As docker/compose.yaml has it.
KEPT = ["--read-only", "--tmpfs", "/tmp", "--volume", "/data", "--cap-drop", "ALL", "--init"]
SMALL = ("data.scenes.images=40", "bootstrap.epochs=1", "finetune.epochs=1")


def docker(*command: str) -> str:
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_a_pipeline_in_the_image() -> None:
    need_engine()
    docker("docker", "build", "-f", "docker/Dockerfile", *ARGUMENTS, "-t", IMAGE, ".")
    options = [part for option in SMALL for part in ("--set", option)]
    output = docker("docker", "run", "--rm", *KEPT, IMAGE, "paraclip", "run", "-c", "configs/demo.yaml", *options)
    assert "verdict:" in output and "report: /data/root/results/demo/report.html" in output
