"""A stage in a child process: how it ends, and what its end looks like."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.tasks.run import execute
from paraclip.tasks.run.child import call_in_child, log_path
from paraclip.tasks.run.execute import TAKEN, run_in_child
from paraclip.tasks.run.run import Run
from paraclip_core.config import Settings
from paraclip_core.errors import InputError, StageError, worth_a_retry
from tests.kit.fake_stages import MAKE, settings_at
from tests.kit.processes import alive
from tests.kit.waiting import eventually


@pytest.fixture(autouse=True)
def _a_child_has_the_fake_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "MAKE", MAKE)


def draft(stage: str) -> Draft:
    return Draft(stage, "0123abcd", 1, {}, {})


def run(root: Path, stage: str, **kwargs: Any) -> Artifact:
    return run_in_child(draft(stage), Run(settings_at(root)), {}, **kwargs)


def test_it_runs_elsewhere_without_prefect_and_tells_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[tuple[int, int | None]] = []
    # A working directory shadows no module of Python's.
    (tmp_path / "queue.py").write_text("raise RuntimeError('not Python's')")
    monkeypatch.chdir(tmp_path)
    artifact = run(tmp_path / "root", "first", progress=lambda done, total, **facts: reports.append((done, total)))
    metrics = artifact.manifest.metrics
    assert metrics["pid"] != os.getpid() and metrics["prefect"] is False
    assert reports and reports[-1] == (3, 3) and reports == sorted(reports)


def test_errors_keep_class_and_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^captions.csv row 7: expected a caption$"):
        run(tmp_path, "refuse")


def test_a_crash_after_the_work_is_told_as_one(tmp_path: Path) -> None:
    request = {"draft": asdict(draft("answer"))}
    with pytest.raises(StageError, match="its process was killed by SIGSEGV"):
        call_in_child("tests.kit.fake_stages:end_and_crash", request, settings_at(tmp_path), tmp_path / "answer.log")


def test_a_second_run_waits_for_the_first_and_takes_its_result(tmp_path: Path) -> None:
    messages: list[dict[str, Any]] = []
    store = ArtifactStore(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        with store.writing("first", "0123abcd"):
            second = pool.submit(run, tmp_path, "first", progress=lambda done, total, **facts: messages.append(facts))
            eventually(lambda: messages)
            assert not second.done()
            (store.work_path("first", "0123abcd") / "out" / "made.txt").write_text("by the first run")
            first = store.commit(draft("first"), {"rows": 0}, 0)
        assert second.result(30) == first
    *waiting, last = messages
    assert last == {TAKEN: "from another run"}
    assert all(facts == {"waiting": "for another run of the same stage"} for facts in waiting)


@pytest.mark.parametrize(
    ("stage", "how", "said"),
    [
        ("crash", "ended with code 1", "ZeroDivisionError: the very reason"),
        ("killed", "was killed by SIGKILL", "about to be killed"),
    ],
)
def test_a_crash_shows_the_end_of_this_trys_log(tmp_path: Path, stage: str, how: str, said: str) -> None:
    path = log_path(ArtifactStore(tmp_path), stage, "0123abcd")
    path.parent.mkdir(parents=True)
    path.write_text("an older try\n")
    with pytest.raises(StageError, match=how) as caught:
        run(tmp_path, stage)
    assert said in str(caught.value) and str(path) in str(caught.value) and "an older try" not in str(caught.value)


def test_much_output_goes_to_the_log_not_to_a_pipe(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "talk")
    text = log_path(ArtifactStore(tmp_path), "talk", "0123abcd").read_text()
    assert len(text) > 300_000 and "from the grandchild" in text
    assert capfd.readouterr().out == ""


def test_a_run_of_earlier_code_makes_nothing_with_later_code(tmp_path: Path) -> None:
    store, earlier = ArtifactStore(tmp_path), replace(draft("first"), stage_version=0)
    with pytest.raises(StageError, match=r"first is now version 1 and was 0 when this run began.*run again"):
        run_in_child(earlier, Run(settings_at(tmp_path)), {})
    assert store.find("first", earlier.fingerprint) is None


def test_settings_of_another_checkout_are_reported_once_and_not_as_a_crash(tmp_path: Path) -> None:
    class Later(Settings):
        sharpness: float = 1.0

    later = Later.model_validate(settings_at(tmp_path).model_dump())
    with pytest.raises(StageError, match=r"settings of this run \(sharpness\): it has changed") as raised:
        run_in_child(draft("first"), Run(later), {})
    assert not worth_a_retry(raised.value)


@pytest.mark.parametrize("way", ["interrupt", "stop"])
def test_a_stubborn_child_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr("paraclip.tasks.run.child.PATIENCE_SECONDS", 0.5)
    pid_file = ArtifactStore(tmp_path).work_path("hang", "0123abcd") / "scratch" / "pid"
    here = Run(settings_at(tmp_path))

    def end() -> None:
        eventually(lambda: pid_file.exists() and pid_file.read_text())
        if way == "stop":
            here.stop.set()
        else:
            signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=end)
    thread.start()
    with pytest.raises(StageError if way == "stop" else KeyboardInterrupt):
        run_in_child(draft("hang"), here, {})
    thread.join()
    assert not alive(int(pid_file.read_text()))


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "from tests.kit.fake_stages import MAKE, settings_at; from paraclip.storage.artifacts import Draft;"
        "from paraclip.tasks.run import execute; from paraclip.tasks.run.run import Run; execute.MAKE = MAKE;"
        f"execute.run_in_child(Draft('hang', '0123abcd', 1, {{}}, {{}}), Run(settings_at({str(tmp_path)!r})), {{}})"
    )
    paths = str(Path(__file__).parents[3])
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths})
    pid_file = ArtifactStore(tmp_path).work_path("hang", "0123abcd") / "scratch" / "pid"
    try:
        eventually(lambda: pid_file.exists() and pid_file.read_text())
        child = int(pid_file.read_text())
        assert alive(child) and os.getpgid(child) == os.getpgid(parent.pid)
    finally:
        parent.kill()
        parent.wait()
    eventually(lambda: not alive(child), seconds=5)
