"""Processes that are started to outlive a command, and ended as exactly those."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import eventually  # pyright: ignore[reportMissingImports]

from flows.processes import Process, carriers, end_all, family, kill, living, start


def begin(tmp_path: Path, name: str, code: str) -> Process:
    return start(name, [sys.executable, "-c", code], os.environ, tmp_path / "log" / name, tmp_path)


def test_output_goes_to_the_log_and_the_folder_is_taken(tmp_path: Path) -> None:
    process = begin(tmp_path, "talk", "import os; print(os.getcwd())")
    eventually(lambda: not living(process))
    assert (tmp_path / "log" / "talk").read_text().strip() == str(tmp_path)


def test_only_what_was_started_is_ended(tmp_path: Path) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process = begin(tmp_path, "sleep", "import time; time.sleep(60)")
    try:
        assert living(process)
        assert end_all([process]) == []
        assert not living(process) and bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_stubborn_process_and_its_children_in_other_sessions_are_killed(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True);"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    process = begin(tmp_path, "stubborn", code)
    log = tmp_path / "log" / "stubborn"
    eventually(lambda: log.read_text().endswith("\n"))
    child = int(log.read_text())
    assert end_all([process], patience=0.3) == ["stubborn"]
    eventually(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split())


def test_a_reused_pid_is_not_taken_for_ours(tmp_path: Path) -> None:
    assert not living(Process("other", os.getpid(), "0"))
    assert end_all([Process("other", os.getpid(), "0")]) == []


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="this system has no /proc")
def test_what_carries_a_mark_is_found_without_its_parent(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    environment = {**os.environ, "PARACLIP_TEST_MARK": str(tmp_path)}
    parent = start("parent", [sys.executable, "-c", code], environment, tmp_path / "log", tmp_path)
    eventually(lambda: not living(parent))
    orphans = carriers("PARACLIP_TEST_MARK", str(tmp_path))
    assert len(orphans) == 1 and family([parent]) == {}
    assert carriers("PARACLIP_TEST_MARK", str(tmp_path)[:-1]) == {}
    assert kill(dict.fromkeys(orphans, "0")) == []
    assert kill(orphans) == list(orphans)
    eventually(lambda: not carriers("PARACLIP_TEST_MARK", str(tmp_path)))
