"""A run whose captions lack what its later stages need ends before it asks for a paraphrase; a plan tells it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai_server import OpenAIServer  # pyright: ignore[reportMissingImports]

from paraclip.flows.cli import run_cli
from paraclip_core.errors import InputError
from paraclip_core.settings import load_settings

Capture = pytest.CaptureFixture[str]
EXPECTED = "searches the images of split val (evaluate.split), but none of the 24 captions is of it (train 24)"


@pytest.fixture
def config(tmp_path: Path, openai_server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run of twelve images with two captions each, all for training; the server must not hear of it."""
    monkeypatch.delenv("PARACLIP_ROOT", raising=False)
    rows = [f"{image}.jpg,a dog with number {image} runs {way}" for image in range(12) for way in ("east", "west")]
    (tmp_path / "captions.csv").write_text("\n".join(["Image,Caption", *rows]) + "\n")
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "0.jpg").touch()
    path = tmp_path / "run.yaml"
    path.write_text(
        f"""
        run: {{root: {tmp_path / "root"}}}
        data: {{root: {tmp_path}, sources: [{{path: captions.csv, images: pics}}]}}
        paraphrase: {{engine: openai, model: smol, openai: {{base_url: {openai_server.url}}}}}
        evaluate: {{benchmarks: [{{name: captions, kind: paraphrased_retrieval}}]}}
        """
    )
    yield path
    assert not openai_server.asked


def test_a_plan_tells_what_captions_lack(config: Path, capsys: Capture) -> None:
    assert run_cli(["plan", "-c", str(config)]) == 1
    assert EXPECTED in " ".join(capsys.readouterr().err.split())
    assert run_cli(["plan", "-c", str(config), "--set", "data.sources.0.images=null"]) == 1
    assert "none of the 24 training captions has an image (captions.csv 24)" in capsys.readouterr().err


def test_a_plan_tells_of_captions_that_cannot_be_trained_on(config: Path, capsys: Capture) -> None:
    (config.parent / "more.txt").write_text("a cat on a mat\n")
    more = ["--set", "evaluate.split=train", "--set", "data.sources.1.path=more.txt"]
    assert run_cli(["plan", "-c", str(config), *more, "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    notice = next(note for note in notes if note.startswith("ingest leaves out no_image 1 of 25 rows"))
    assert run_cli(["plan", "-c", str(config), *more]) == 0
    assert notice in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_run_ends_before_it_asks(config: Path) -> None:
    from prefect_server import prefect_server  # pyright: ignore[reportMissingImports]

    from paraclip.flows.pipeline import pipeline

    with prefect_server(), pytest.raises(InputError) as error:
        pipeline(settings=load_settings(config, []))
    assert EXPECTED in str(error.value)
    made = sorted(path.name for path in (config.parent / "root" / "artifacts").iterdir())
    assert made == ["ingest"]
