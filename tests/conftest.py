"""Fixtures that every test may use."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Prefect and Hugging Face stay on this machine, whatever the environment says.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# No test uses blocks; to make them known takes a new server a second.
os.environ.setdefault("PREFECT_SERVER_REGISTER_BLOCKS_ON_START", "false")
# Of a server that Prefect starts by itself, on a busy machine.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "900")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# As in a stage's process. oneDNN reads it at the first computation, and else keeps a gigabyte of kernels.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

# A shell's background job ignores SIGINT, and so would every process that a test starts to interrupt it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is slow, which is no failure.
settings.register_profile("patient", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_sessionfinish() -> None:
    """End what a process shares between its tests."""
    if shared := sys.modules.get("tests.kit.prefect_server"):
        shared.end_server()


@pytest.fixture(autouse=True)
def _hear_every_line() -> None:
    """What an earlier test of this process has switched off is heard again."""
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module", autouse=True)
def _give_memory_back() -> Iterator[None]:
    """What a module has freed, which `train` lets the C library keep, goes back to the system."""
    yield
    gc.collect()
    # What is left are libraries: looking through them takes a third of a second, each time.
    gc.freeze()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with real captions, images and benchmarks (PARACLIP_DATA); tests that need it skip without it."""
    folder = Path(os.environ.get("PARACLIP_DATA", "../shared/data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set PARACLIP_DATA")
    return folder.resolve()


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A disk that is soon full: 1 MiB, or what an indirect parameter says."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={getattr(request, 'param', '1m')}", "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def openai_server() -> Iterator[Any]:
    """A server with OpenAI's interface (`openai_server.OpenAIServer`)."""
    from tests.kit.openai_server import OpenAIServer

    with OpenAIServer() as server:
        yield server
